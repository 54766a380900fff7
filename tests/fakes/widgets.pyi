"""The two widgets of A1111's own that the panel is built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from gradio.events import Dependency

class InputAccordion(gr.Checkbox):
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
) -> gr.Button:
    def press() -> Any:
        refresh()
        return gr.update(**arguments())

    button = gr.Button(value="refresh", elem_id=elem_id)
    button.click(fn=press, inputs=[], outputs=[component])
    return button