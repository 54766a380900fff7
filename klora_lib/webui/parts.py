"""One component for each field, and what the parts of the panel need from the WebUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..settings import METHODS, Field, Settings
from .presets import Store

NONE = "None"
Save = Callable[[Sequence[Any], Any, Any, Any, Any], str]
ElemId = Callable[[str], str]
# gradio 3 sends every key typed into a list with custom values; gradio 4 shows a pasted name only in such a list
CUSTOM_NAMES = not gr.__version__.startswith("3.")


@dataclass(frozen=True)
class Services:
    """What the panel asks of whoever shows it.

    loras: returns the listed names.  refresh_button: the host's function that makes a button which calls ``refresh`` and
    then ``loras`` again; None for no button.  describe: a picker's value → HTML under it.  check: both values → HTML that
    says why they do not fit; empty if they do.  save: see ``add_save``; None where nothing can be saved.
    """

    loras: Callable[[], list[str]]
    refresh_button: Callable[..., Any] | None = None
    refresh: Callable[[], None] = lambda: None
    describe: Callable[[Any], str] = lambda name: ""
    check: Callable[[Any, Any], str] = lambda content, style: ""
    save: Save | None = None
    presets: Store = field(default_factory=lambda: Store(None))


def choose_initial(field: Field) -> Any:
    """What a component shows at first: the default; for beta the number that the default None means."""
    if field.name == "beta":
        return Settings().offset
    if field.name in ("content", "style"):
        return NONE
    return "" if field.default is None else field.default


def show_value(field: Field, value: Any) -> Any:
    """A setting's value as the field's component takes it."""
    if value is None:
        return ""
    return str(value) if field.name in ("gamma", "k") else value


def list_classes(field: Field) -> list[str]:
    """CSS classes for javascript/klora.js, which dims the fields that the chosen method does not use."""
    return [] if field.methods == METHODS else ["klora-field", *(f"klora-for-{method}" for method in field.methods)]


def make_component(field: Field, choices: Sequence[str], elem_id: str, start: Mapping[str, Any]) -> Any:
    """The component of one field.

    Args: choices: the listed LoRAs, for the fields that choose one.  start: by field name, what is shown at first instead
    of the default; the WebUI's file of initial values does not change these.
    """
    value = show_value(field, start[field.name]) if field.name in start else choose_initial(field)
    made = make_widget(
        field, choices, label=field.label, info=field.help, value=value, elem_id=elem_id, elem_classes=list_classes(field)
    )
    return keep_out_of_config(made) if field.name in start else made


def make_widget(field: Field, choices: Sequence[str], **common: Any) -> Any:
    if field.name in ("content", "style"):
        return gr.Dropdown(choices=[NONE, *choices], allow_custom_value=CUSTOM_NAMES, **common)
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


def keep_out_of_config(component: Any) -> Any:
    """The WebUI does not write this component's value into its file of initial values, nor read it from there."""
    component.do_not_save_to_config = True
    return component
