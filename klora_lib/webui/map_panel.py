"""The live map's place in the panel: the page's script gets the panel's values from gradio, not from what is on screen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from .parts import ElemId, keep_out_of_config


def add_map(elem_id: ElemId) -> None:
    """The map's place, which javascript/klora_map.js fills."""
    gr.HTML(elem_id=elem_id("map"))


def link_map(components: Sequence[Any], elem_id: ElemId) -> None:
    """Give the script the values of ``components`` whenever one changes.

    Everything happens in the page: there is no function here, so nothing is sent to the server or to its queue.  The script
    asks for the first values by pressing a button that is not shown.
    """
    button = keep_out_of_config(gr.Button("Ask", elem_id=elem_id("map_values"), elem_classes=["klora-hidden"]))
    prefix = elem_id("map").removesuffix("_map")
    script = f"(...values) => window.kloraMap ? window.kloraMap.take('{prefix}', values) : []"
    for listen in (button.click, *(component.change for component in components)):
        listen(fn=None, inputs=list(components), outputs=[], show_progress="hidden", **{find_word(listen): script})


def find_word(listen: Callable[..., Any]) -> str:
    """How this gradio calls the parameter for a function of the page."""
    return "js" if "js" in inspect.signature(listen).parameters else "_js"
