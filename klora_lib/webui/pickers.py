"""The two pickers, the facts under them, *Swap*, and whether the pair fits.  None of their events waits in the queue."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ..settings import BY_NAME
from .parts import NONE, ElemId, Services, keep_out_of_config, make_component

ROLES = ("content", "style")
AT_ONCE: Mapping[str, Any] = {"queue": False, "show_progress": "hidden"}


def add_pickers(made: dict[str, Any], elem_id: ElemId, services: Services, start: Mapping[str, Any]) -> None:
    names = services.loras()
    facts = {}
    with gr.Row(elem_id=elem_id("pair")):
        for name in ROLES:
            with gr.Column(min_width=260):
                with gr.Row():
                    made[name] = make_component(BY_NAME[name], names, elem_id(name), start)
                    if services.refresh_button is not None:
                        services.refresh_button(
                            made[name], services.refresh, lambda: {"choices": [NONE, *services.loras()]},
                            elem_id(f"{name}_refresh"),
                        )  # fmt: skip
                facts[name] = gr.HTML(elem_id=elem_id(f"{name}_facts"))
    fit = gr.HTML(elem_id=elem_id("fit"))
    with gr.Row(elem_id=elem_id("weights")):
        for name in ("content_weight", "style_weight"):
            made[name] = make_component(BY_NAME[name], (), elem_id(name), start)
        swap_button = gr.Button("Swap", elem_id=elem_id("swap"))
    add_requests(made, elem_id, services, [fit, *facts.values()])
    both = [made[name] for name in ROLES]

    def swap(content: Any, style: Any, content_weight: Any, style_weight: Any) -> list[Any]:
        return [gr.update(value=value) for value in (style, content, style_weight, content_weight)]

    for name in ROLES:
        made[name].change(services.describe, [made[name]], [facts[name]], **AT_ONCE)
        made[name].change(services.check, both, [fit], **AT_ONCE)
    four = [*both, made["content_weight"], made["style_weight"]]
    swap_button.click(swap, four, four, **AT_ONCE)


def add_requests(made: dict[str, Any], elem_id: ElemId, services: Services, answers: list[Any]) -> None:
    """What javascript/klora.js asks for: it writes JSON into the hidden text and presses the hidden button.

    ``{"content": name}`` and ``{"style": name}`` choose a LoRA, as the buttons on the cards do; ``{}`` checks the pair.
    ``answers``: the check's HTML, and the facts of both, which are all written anew.
    """
    hidden: Mapping[str, Any] = {"elem_classes": ["klora-hidden"]}
    text = keep_out_of_config(gr.Textbox(show_label=False, elem_id=elem_id("ask"), **hidden))
    button = keep_out_of_config(gr.Button("Ask", elem_id=elem_id("act"), **hidden))
    both = [made[name] for name in ROLES]

    def act(asked: Any, *chosen: Any) -> list[Any]:
        names = choose(asked, *chosen)
        on = names != list(chosen) and all(name not in ("", None, NONE) for name in names)
        updates = [gr.update() if name == old else gr.update(value=name) for name, old in zip(names, chosen)]
        told = [services.check(*names), *map(services.describe, names)]
        return [*updates, gr.update(value=True) if on else gr.update(), *told]

    # gradio 4 would pass over a request that comes before the answer of the last one; gradio 3 does not
    words = {"trigger_mode": "multiple"} if "trigger_mode" in inspect.signature(button.click).parameters else {}
    button.click(act, [text, *both], [*both, made["enabled"], *answers], **AT_ONCE, **words)


def choose(asked: Any, content: Any, style: Any) -> list[Any]:
    """The two names after a request.  A LoRA that takes one role leaves the other."""
    names = {"content": content, "style": style}
    try:
        given = json.loads(asked)
    except (TypeError, ValueError, RecursionError):
        return [content, style]
    for role, other in (ROLES, ROLES[::-1]):
        if isinstance(given, dict) and isinstance(given.get(role), str):
            names[role] = given[role]
            if names[other] == names[role]:
                names[other] = NONE
    return list(names.values())
