"""Settings to and from the text that is written into an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .settings import BY_NAME, FIELDS, Field, Settings

ALWAYS = ("enabled", "content", "style", "method", "alpha", "beta", "gamma", "scale")
STEM = "K-LoRA "
NEVER = ("show_map",)  # says nothing about the image


def write(settings: Settings) -> dict[str, str]:
    """Infotext name → text: the fields that make the image, and of the others those that are not at their default."""
    values = {f.name: getattr(settings, f.name) for f in FIELDS} | {"beta": settings.offset}
    kept = {
        name: value
        for name, value in values.items()
        if name in ALWAYS or (name not in NEVER and value != BY_NAME[name].default)
    }
    return {BY_NAME[name].infotext: format_value(value) for name, value in kept.items()}


def stamp(p: Any, settings: Settings) -> None:
    """Write ``settings`` into a dict of parameters of ``p``'s own: the cells of a plot are copies of one p, and share it."""
    withdraw(p)
    p.extra_generation_params |= write(settings)


def withdraw(p: Any) -> None:
    """Take everything of ours out of ``p``'s parameters, into a dict of its own."""
    p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if not k.startswith(STEM)}


def format_value(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def join(params: Mapping[str, Any]) -> str:
    """`name: value, name: value`, as a WebUI writes the last line of an image's parameters and reads it again."""
    return ", ".join(f"{name}: {quote(format_value(value))}" for name, value in params.items())


def quote(value: str) -> str:
    """A value that a reader would take for several, as JSON."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def read(params: Mapping[str, str], field: Field, default: Any) -> Any:
    """What pasting ``params`` makes of ``field``: its value, ``default`` where left out, None without a K-LoRA image.

    An image made without K-LoRA switches it off, and leaves the rest of the panel alone.
    """
    made_here = BY_NAME["enabled"].infotext in params
    if not made_here:
        return False if field.name == "enabled" else None
    if field.infotext not in params:
        return None if field.name in NEVER else default
    try:
        return field.read(params[field.infotext])
    except (ValueError, TypeError):
        return None
