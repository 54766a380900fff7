"""The panel: one component for each field of the settings table, and what helps to choose their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .. import infotext
from ..errors import SettingsError
from ..settings import BY_NAME, FIELDS, Field
from .map_panel import add_map, link_map
from .parts import NONE, ElemId, Save, Services, choose_initial, make_component
from .pickers import add_pickers
from .preset_box import add_preset_list, link_presets
from .refuse import KLoraRefused

STEPS = 20  # sampler steps for which a LoRA is saved, if the user says nothing else
COLUMNS = 3  # of the rows under *Advanced*


@dataclass(frozen=True)
class Panel:
    components: list[Any]  # in the order of FIELDS
    infotext_fields: list[tuple[Any, Callable[[dict[str, str]], Any]]]
    names: list[str]


def build_panel(
    accordion: Callable[..., Any],
    elem_id: ElemId,
    services: Services,
    notice: str = "",
    start: Mapping[str, Any] | None = None,
) -> Panel:
    """The panel inside the WebUI's own ``accordion``, whose checkbox is the field ``enabled``.

    Args: elem_id: makes the script's element ids.  notice: a warning at the top, if any.  start: by field name, what is
    shown at first instead of the defaults.
    """
    made: dict[str, Any] = {}
    start = start or {}
    with accordion(False, label=BY_NAME["enabled"].label, elem_id=elem_id("enabled")) as made["enabled"]:
        if notice:
            gr.Markdown(notice, elem_id=elem_id("notice"), elem_classes=["klora-notice"])
        add_pickers(made, elem_id, services, start)
        with gr.Row(elem_id=elem_id("first")):
            for name in ("method", "balance"):
                made[name] = make_component(BY_NAME[name], (), elem_id(name), start)
            preset = add_preset_list(elem_id, services.presets)
        add_map(elem_id)
        with gr.Accordion("Advanced", open=False, elem_id=elem_id("advanced")):
            others = [field for field in FIELDS if field.name not in made]
            for first in range(0, len(others), COLUMNS):
                with gr.Row():
                    for field in others[first : first + COLUMNS]:
                        made[field.name] = make_component(field, (), elem_id(field.name), start)
        link_map([made[field.name] for field in FIELDS], elem_id)
        link_presets(made, preset, elem_id, services.presets)
        if services.save is not None:
            add_save(made, elem_id, services.save, services.loras)
    link_beta(made)
    pastes = [(made[f.name], make_paste(f)) for f in FIELDS]
    return Panel([made[f.name] for f in FIELDS], pastes, [f.infotext for f in FIELDS])


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
        try:
            found = infotext.read(params, field, choose_initial(field))
        except SettingsError as e:
            gr.Warning(f"K-LoRA: {e}")  # a host shows nothing of the exception, but its API answers with it
            raise KLoraRefused(f"K-LoRA: {e}") from None
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
