"""A stand-in for gradio 3.41.2: the components and events of the panel, with that version's own parameters and no others.

The real one takes what it does not know with a warning and does nothing with it; here that is an error.  Used where no
real gradio 3 is installed; where one is (`make test-a1111`), the panel's tests run on that, and compare the two.
"""

from __future__ import annotations

import itertools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, Signature
from typing import Any

import klora_lib.webui

COMMON = "label info every show_label container scale min_width interactive visible elem_id elem_classes"
COMPONENTS = {  # name: parameters, those after the star by keyword only
    "Dropdown": f"choices * value type multiselect allow_custom_value max_choices {COMMON}",
    "Checkbox": f"value * {COMMON}",
    "Slider": f"minimum maximum value * step randomize {COMMON}",
    "Textbox": f"value * lines max_lines placeholder autofocus type text_align rtl show_copy_button {COMMON}",
    "Markdown": "value * rtl latex_delimiters visible elem_id elem_classes",
    "HTML": "value * label every show_label visible elem_id elem_classes",
    "Button": "value * variant size icon link visible interactive elem_id elem_classes scale min_width",
}
LAYOUTS = {
    "Row": "* variant visible elem_id equal_height", "Column": "* scale min_width variant visible elem_id",
    "Accordion": "label * open visible elem_id",
}  # fmt: skip
EVENTS = {
    "Dropdown": ("change", "input", "select", "focus", "blur"),
    "Checkbox": ("change", "input", "select"),
    "Slider": ("change", "input", "release"),
    "Textbox": ("change", "input", "select", "submit", "focus", "blur"),
    "Markdown": ("change",),
    "HTML": ("change",),
    "Button": ("click",),
}
LISTENER = (
    "fn inputs outputs api_name status_tracker scroll_to_output show_progress queue batch max_batch_size preprocess "
    "postprocess cancels every _js"
)


def signature(text: str) -> Signature:
    before, _, after = text.partition("*")
    places = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in before.split()]
    return Signature([*places, *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in after.split())])


def listener(functions: list[types.SimpleNamespace]) -> Callable[..., None]:
    def listen(*args: Any, **kwargs: Any) -> None:
        given = signature(LISTENER).bind(*args, **kwargs).arguments
        functions.append(types.SimpleNamespace(**{"inputs": None, "outputs": None, **given}))

    return listen


def make() -> types.ModuleType:
    """The module; a page of its own for every ``with Blocks()``."""
    module = types.ModuleType("gradio")
    pages: list[Any] = []
    numbers: Iterator[int] = itertools.count(1)

    class Blocks:
        def __init__(self) -> None:
            self.blocks: dict[int, Any] = {}
            self.fns: list[types.SimpleNamespace] = []

        def __enter__(self) -> Blocks:
            pages.append(self)
            return self

        def __exit__(self, *error: object) -> None:
            pages.pop()

    class Block:
        parameters, events = "", ()

        def __init__(self, *args: Any, **kwargs: Any):
            given = signature(self.parameters).bind(*args, **kwargs)
            given.apply_defaults()
            self.__dict__.update(given.arguments)
            self._id = next(numbers)
            pages[-1].blocks[self._id] = self
            for event in self.events:
                setattr(self, event, listener(pages[-1].fns))

    class Layout(Block):
        def __enter__(self) -> Layout:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def update(**kwargs: Any) -> dict[str, Any]:
        return {**kwargs, "__type__": "update"}

    for names, base in ((COMPONENTS, Block), (LAYOUTS, Layout)):
        for name, parameters in names.items():
            setattr(module, name, type(name, (base,), {"parameters": parameters, "events": EVENTS.get(name, ())}))
    module.__version__ = "3.41.2"  # type: ignore[attr-defined]
    module.Blocks, module.update, module.Warning = Blocks, update, warnings.warn  # type: ignore[attr-defined]
    return module


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """gradio is the stand-in for everything of ours that is imported meanwhile, and forgotten afterwards."""

    def concerned() -> dict[str, types.ModuleType]:
        return {n: m for n, m in sys.modules.items() if n == "gradio" or n.startswith("klora_lib.webui")}

    before = concerned()
    for name in before:
        del sys.modules[name]
    module = sys.modules["gradio"] = make()
    try:
        yield module
    finally:
        for name in concerned():
            del sys.modules[name]
        sys.modules.update(before)
        klora_lib.webui = before["klora_lib.webui"]
