"""The list of presets, and the box in which the user keeps their own."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import KLoraError
from ..settings import BY_NAME
from .facts_html import write_note, write_trouble
from .parts import ElemId, keep_out_of_config, show_value
from .pickers import AT_ONCE
from .presets import TOUCHED, Store, fill, write_presets


def add_preset_list(elem_id: ElemId, store: Store) -> Any:
    """The list from which a preset is chosen.  ``link_presets`` gives it its function, when all components are there."""
    preset = gr.Dropdown(
        label="Preset", choices=store.list_names(), value=None, elem_id=elem_id("preset"),
        info="Sets the method and all that belongs to it; the LoRAs and their weights stay.",
    )  # fmt: skip
    return keep_out_of_config(preset)


def link_presets(made: dict[str, Any], preset: Any, elem_id: ElemId, store: Store) -> None:
    """The box *Your presets*, and what choosing in the list does.

    gradio writes a list's choices into the page once, when the WebUI starts; but presets are saved later, and in the other
    tab. So javascript/klora.js presses a hidden button, which lists them anew, whenever the list comes into view.
    """
    with gr.Accordion("Your presets", open=False, elem_id=elem_id("presets")):
        with gr.Row():
            name = gr.Textbox(
                label="Preset name", max_lines=1, elem_id=elem_id("preset_name"),
                info="Under this name the panel's method and all that belongs to it are kept.",
            )  # fmt: skip
            save = gr.Button("Save preset", elem_id=elem_id("preset_save"))
            delete = gr.Button("Delete preset", elem_id=elem_id("preset_delete"))
        with gr.Row():
            text = gr.Textbox(
                label="Presets as JSON", lines=3, max_lines=12, elem_id=elem_id("preset_json"),
                info="Export writes all your presets here; Import adds those that are written here.",
            )  # fmt: skip
            export = gr.Button("Export", elem_id=elem_id("preset_export"))
            bring = gr.Button("Import", elem_id=elem_id("preset_import"))
    told = gr.HTML(elem_id=elem_id("preset_told"))
    again = gr.Button("Ask", elem_id=elem_id("preset_list"), elem_classes=["klora-hidden"])
    for each in (name, text, save, delete, export, bring, again):
        keep_out_of_config(each)
    touched = [made[field] for field in TOUCHED]
    nothing = [gr.update() for _ in touched]

    def apply(name: Any) -> list[Any]:
        if not name:
            return [*nothing, ""]
        try:
            values = fill(store.find(name))
        except KLoraError as e:
            return [*nothing, write_trouble(f"{e}.")]
        return [*(gr.update(value=show_value(BY_NAME[field], values[field])) for field in TOUCHED), ""]

    def keep(name: Any, *values: Any) -> list[Any]:
        try:
            kept = store.save(name, dict(zip(TOUCHED, values)))
        except KLoraError as e:
            return [gr.update(), write_trouble(f"{e}.")]
        return [gr.update(choices=store.list_names(), value=kept), write_note("Saved", kept)]

    def drop(name: Any) -> list[Any]:
        try:
            store.delete(name)
        except KLoraError as e:
            return [gr.update(), write_trouble(f"{e}.")]
        return [gr.update(choices=store.list_names(), value=None), write_note("Deleted", str(name).strip())]

    def show() -> list[Any]:
        try:
            return [write_presets(store.read()), ""]
        except KLoraError as e:
            return [gr.update(), write_trouble(f"{e}.")]

    def add(text: Any) -> list[Any]:
        try:
            count = store.add(text if isinstance(text, str) else "")
        except KLoraError as e:
            return [gr.update(), write_trouble(f"{e}.")]
        return [gr.update(choices=store.list_names()), write_note("Imported", str(count))]

    preset.input(apply, [preset], [*touched, told], **AT_ONCE)
    save.click(keep, [name, *touched], [preset, told], **AT_ONCE)
    delete.click(drop, [name], [preset, told], **AT_ONCE)
    export.click(show, [], [text, told], **AT_ONCE)
    bring.click(add, [text], [preset, told], **AT_ONCE)
    again.click(lambda: gr.update(choices=store.list_names()), [], [preset], **AT_ONCE)
