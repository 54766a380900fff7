"""The live map's place in the panel: the page's script gets the panel's values from gradio, not from what is on screen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr


def link_map(components: Sequence[Any], elem_id: Callable[[str], str]) -> None:
    """Give javascript/klora_map.js the values of ``components`` whenever one changes, and when it asks for them.

    Called inside the panel's accordion, whose element ``elem_id("map")`` the script fills.  Everything happens in the page:
    there is no function here, so nothing is sent to the server or to its queue.  The script asks by pressing a button that
    is not shown.
    """
    button = gr.Button("", elem_id=elem_id("map_values"), elem_classes=["klora-map-values"])
    prefix = elem_id("map").removesuffix("_map")
    script = f"(...values) => {{ window.kloraMap && window.kloraMap.take('{prefix}', values); return []; }}"
    for listen in (button.click, *(component.change for component in components)):
        listen(fn=None, inputs=list(components), outputs=[], show_progress="hidden", **{find_word(listen): script})


def find_word(listen: Callable[..., Any]) -> str:
    """How this gradio calls the parameter for a function of the page."""
    return "js" if "js" in inspect.signature(listen).parameters else "_js"
