"""The panel: one component for each field of the settings table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .. import infotext
from ..settings import BY_NAME, FIELDS, METHODS, Field, Settings
from .map_panel import link_map

NONE = "None"
STEPS = 20  # sampler steps for which a LoRA is saved, if the user says nothing else
Save = Callable[[Sequence[Any], Any, Any, Any, Any], str]


@dataclass(frozen=True)
class Panel:
    components: list[Any]  # in the order of FIELDS
    infotext_fields: list[tuple[Any, Callable[[dict[str, str]], Any]]]
    names: list[str]


def choose_initial(field: Field) -> Any:
    """What a component shows at first: the default; for beta the number that the default None means."""
    if field.name == "beta":
        return Settings().offset
    if field.name in ("content", "style"):
        return NONE
    return "" if field.default is None else field.default


def list_classes(field: Field) -> list[str]:
    """CSS classes for javascript/klora.js, which dims the fields that the chosen method does not use."""
    return [] if field.methods == METHODS else ["klora-field", *(f"klora-for-{method}" for method in field.methods)]


def make_component(field: Field, choices: Sequence[str], elem_id: str) -> Any:
    """The component of one field.  ``choices``: the listed LoRAs, for the fields that choose one."""
    common = dict(
        label=field.label, info=field.help, value=choose_initial(field), elem_id=elem_id, elem_classes=list_classes(field)
    )
    if field.name in ("content", "style"):
        return gr.Dropdown(choices=[NONE, *choices], **common)
    if isinstance(field.default, bool):
        return gr.Checkbox(**common)
    if field.name in ("gamma", "k"):
        return gr.Dropdown(choices=list(field.choices), allow_custom_value=True, **common)
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), **common)
    if field.range and (field.default is not None or field.name == "beta"):
        least, most, step = field.range
        return gr.Slider(minimum=least, maximum=most, step=step, **common)
    return gr.Textbox(max_lines=1, **common)


def build_panel(
    accordion: Callable[..., Any],
    elem_id: Callable[[str], str],
    loras: Callable[[], list[str]],
    refresh_button: Callable[..., Any] | None = None,
    refresh: Callable[[], None] = lambda: None,
    notice: str = "",
    save: Save | None = None,
) -> Panel:
    """The panel inside the WebUI's own ``accordion``, whose checkbox is the field ``enabled``.

    Args: elem_id: makes the script's element ids.  loras: returns the listed names.  refresh_button: the host's function
    that makes a button which calls ``refresh`` and then ``loras`` again.  notice: a warning at the top, if any.
    save: saves what the panel's values do, see ``add_save``; None where nothing can be saved.
    """
    made: dict[str, Any] = {}
    names = loras()
    with accordion(False, label=BY_NAME["enabled"].label, elem_id=elem_id("enabled")) as made["enabled"]:
        if notice:
            gr.Markdown(notice, elem_id=elem_id("notice"), elem_classes=["klora-notice"])
        with gr.Row():
            for name in ("content", "style"):
                made[name] = make_component(BY_NAME[name], names, elem_id(name))
                if refresh_button is not None:
                    refresh_button(made[name], refresh, lambda: {"choices": [NONE, *loras()]}, elem_id(f"{name}_refresh"))
        add_row(made, ("content_weight", "style_weight"), elem_id)
        add_row(made, ("method", "scale", "gamma"), elem_id)
        add_row(made, ("balance", "alpha", "beta"), elem_id)
        with gr.Accordion("More", open=False):
            add_row(made, ("layers", "progress"), elem_id)
            add_row(made, ("engine", "k"), elem_id)
            add_row(made, ("content_te_weight", "style_te_weight"), elem_id)
            add_row(made, ("mu", "density", "switch_every"), elem_id)
            add_row(made, ("show_map",), elem_id)
        gr.HTML(elem_id=elem_id("map"))
        if save is not None:
            add_save(made, elem_id, save, loras)
        link_map([made[f.name] for f in FIELDS], elem_id)
    link_beta(made)
    pastes = [(made[f.name], make_paste(f)) for f in FIELDS]
    return Panel([made[f.name] for f in FIELDS], pastes, [f.infotext for f in FIELDS])


def add_row(made: dict[str, Any], names: Sequence[str], elem_id: Callable[[str], str]) -> None:
    with gr.Row():
        for name in names:
            made[name] = make_component(BY_NAME[name], (), elem_id(name))


def add_save(made: dict[str, Any], elem_id: Callable[[str], str], save: Save, loras: Callable[[], list[str]]) -> None:
    """The box *Save as LoRA*.  ``save``: (the fields' values, name, segments, steps, overwrite) → what to tell, Markdown."""
    with gr.Accordion("Save as LoRA", open=False, elem_id=elem_id("save")):
        with gr.Row():
            name = gr.Textbox(
                label="Name", max_lines=1, elem_id=elem_id("save_name"),
                info="The file's name; it goes into the WebUI's folder of LoRAs.",
            )  # fmt: skip
            segments = gr.Slider(
                label="Parts", minimum=1, maximum=8, step=1, value=1, elem_id=elem_id("save_segments"),
                info="1: one LoRA, for methods that do not switch. More: a LoRA for each part of the steps.",
            )  # fmt: skip
            steps = gr.Slider(
                label="Steps", minimum=1, maximum=150, step=1, value=STEPS, elem_id=elem_id("save_steps"),
                info="The sampler steps that are planned for.",
            )  # fmt: skip
        with gr.Row():
            overwrite = gr.Checkbox(label="Replace a file of this name", value=False, elem_id=elem_id("save_overwrite"))
            button = gr.Button("Save as LoRA", elem_id=elem_id("save_button"))
        told = gr.Markdown(elem_id=elem_id("save_told"))
    values = [made[field.name] for field in FIELDS]

    def run(*given: Any) -> list[Any]:
        *args, name, segments, steps, overwrite = given
        message = save(args, name, segments, steps, overwrite)
        return [message, *[gr.update(choices=[NONE, *loras()])] * 2]

    # not in the WebUI's queue, so that it need not wait for an image
    button.click(run, [*values, name, segments, steps, overwrite], [told, made["content"], made["style"]], queue=False)


def make_paste(field: Field) -> Callable[[dict[str, str]], Any]:
    """The function that reads the value of a field's component from a pasted infotext's parameters."""

    def read_pasted(params: dict[str, str]) -> Any:
        found = infotext.read(params, field, choose_initial(field))
        return NONE if found == "" and field.name in ("content", "style") else found

    return read_pasted


def link_beta(made: dict[str, Any]) -> None:
    """When the scale changes, β changes to the new scale's default, if it was the old scale's default.

    A field that the user has emptied is None.  Without α there is no default.  An empty β means each scale's default.
    """

    def follow(scale: str, alpha: Any, beta: Any) -> Any:
        if not isinstance(alpha, (int, float)) or not isinstance(beta, (int, float)):  # "" under gradio 3
            return beta
        ours, others = (0.85 * alpha, 0.5) if scale == "s*" else (0.5, 0.85 * alpha)
        return round(ours, 6) if abs(beta - others) < 1e-6 else beta

    # input, not change: pasting an infotext also changes the scale, but it contains its own β
    made["scale"].input(follow, [made["scale"], made["alpha"], made["beta"]], [made["beta"]], show_progress="hidden")
