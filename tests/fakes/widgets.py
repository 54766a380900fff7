"""The two widgets of the hosts' own that the panel is built from, in whichever gradio there is."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def make(gr: ModuleType, accordion_is_a_function: bool) -> dict[str, Any]:
    class InputAccordion(gr.Checkbox):  # type: ignore[misc, name-defined]
        """A hidden checkbox that stands for the open state of an accordion, and is what a script gets."""

        def __init__(self, value: bool, **kwargs: Any):
            super().__init__(value, visible=False, label=kwargs["label"], elem_id=f"{kwargs['elem_id']}-checkbox")
            self.accordion = gr.Accordion(label=kwargs["label"], open=value, elem_id=kwargs["elem_id"])

        def __enter__(self) -> InputAccordion:
            self.accordion.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.accordion.__exit__(*error)

        def get_block_name(self) -> str:
            return "checkbox"

    def create_refresh_button(
        component: Any, refresh: Callable[[], None], arguments: Callable[[], dict[str, Any]], elem_id: str
    ) -> Any:
        def press() -> Any:
            refresh()
            return gr.update(**arguments())

        button = gr.Button(value="refresh", elem_id=elem_id)
        button.click(fn=press, inputs=[], outputs=[component])
        return button

    def function(value: bool, **kwargs: Any) -> InputAccordion:
        return InputAccordion(value, **kwargs)

    accordion = function if accordion_is_a_function else InputAccordion
    return {"InputAccordion": accordion, "create_refresh_button": create_refresh_button}
