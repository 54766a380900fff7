"""The settings in an image's infotext: writing and reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .settings import BY_NAME, FIELDS, Field, Settings

ALWAYS = ("enabled", "content", "style", "method", "alpha", "beta", "gamma", "scale")  # written even if default
STEM = "K-LoRA "
NEVER = ("show_map",)  # does not change the image
BEFORE = {("switch", "switch_every"): 5}  # by method: older defaults of values that the text leaves out


def write(settings: Settings) -> dict[str, str]:
    """Infotext name → text, of the fields in ALWAYS, and of the other fields if they are not the default."""
    values = {f.name: getattr(settings, f.name) for f in FIELDS} | {"beta": settings.offset}
    written = {
        name: value
        for name, value in values.items()
        if name in ALWAYS
        or (settings.method, name) in BEFORE
        or (name not in NEVER and value != BY_NAME[name].default)
    }
    return {BY_NAME[name].infotext: format_value(value) for name, value in written.items()}


def stamp(p: Any, settings: Settings) -> None:
    """Write ``settings`` into ``p``'s parameters, in a new dict: the cells of a plot are copies of one p and share it."""
    withdraw(p)
    p.extra_generation_params |= write(settings)


def withdraw(p: Any) -> None:
    """Give ``p`` a new dict of parameters without K-LoRA's."""
    p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if not k.startswith(STEM)}


def format_value(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def join(params: Mapping[str, Any]) -> str:
    """`name: value, name: value`, the form in which WebUIs write and read the last line of an infotext."""
    return ", ".join(f"{name}: {quote(format_value(value))}" for name, value in params.items())


def quote(value: str) -> str:
    """The value; as JSON if it contains characters that separate values."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def read(params: Mapping[str, str], field: Field, default: Any) -> Any:
    """The value of ``field`` after an infotext with ``params`` is pasted; None: the field does not change.

    It is ``default`` if the infotext does not contain the field.  If the image was made without K-LoRA, pasting switches
    K-LoRA off and changes nothing else in the panel.
    """
    with_klora = BY_NAME["enabled"].infotext in params
    if not with_klora:
        return False if field.name == "enabled" else None
    if field.infotext not in params:
        before = BEFORE.get((params.get(BY_NAME["method"].infotext, ""), field.name), default)
        return None if field.name in NEVER else before
    try:
        return field.read(params[field.infotext])
    except (ValueError, TypeError):
        return None
