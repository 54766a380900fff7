"""The settings in an image's infotext: writing and reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .errors import SettingsError
from .settings import BY_NAME, FIELDS, Field, Settings, read_values

ALWAYS = ("enabled", "content", "style")  # written even if default
STEM = "K-LoRA "
TAG = "K-LoRA tag"  # there if the settings are those of a tag in the prompt
HIRES_TAG = "K-LoRA hires tag"  # there if the hires pass has those of a tag in its own prompt
NEVER = ("show_map",)  # does not change the image
BEFORE = {("switch", "switch_every"): 5}  # by method: older defaults of values that the text leaves out
LORAS = ("content", "style")


def write(settings: Settings) -> dict[str, str]:
    """Infotext name → text, of the fields in ALWAYS, and of the other fields if they are not the default."""
    values = {f.name: getattr(settings, f.name) for f in FIELDS}
    if settings.offset == Settings(scale=settings.scale, alpha=settings.alpha).offset:
        values["beta"] = None
    written = {
        name: value
        for name, value in values.items()
        if name in ALWAYS
        or (settings.method, name) in BEFORE
        or (name not in NEVER and value != BY_NAME[name].default)
    }
    return {BY_NAME[n].infotext: quote_name(value) if n in LORAS else format_value(value) for n, value in written.items()}


def stamp(p: Any, settings: Settings, facts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write ``settings``, if they are enabled, and ``facts`` into ``p``'s parameters.

    Into a new dict: the cells of a plot are copies of one p and share it.
    """
    withdraw(p)
    p.extra_generation_params |= {**(write(settings) if settings.enabled else {}), **facts}


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
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n') else value


def quote_name(name: str) -> str:
    """A LoRA's name, as JSON where WebUIs would read another one: they drop blanks at its ends, and quotes around it.

    WebUIs quote what has a comma, a colon or a line's end.  These are escaped here, so that nothing is quoted twice.
    """
    if name == name.strip() and name.isprintable() and not set(name) & set('"\\'):
        return name
    return json.dumps(name).replace(",", "\\u002c").replace(":", "\\u003a")


def read(params: Mapping[str, str], field: Field, default: Any) -> Any:
    """The value of ``field`` after an infotext with ``params`` is pasted; None: the field does not change.

    It is ``default`` if the infotext does not contain the field.  If the image was made without K-LoRA, or by a tag in the
    prompt, which is pasted with the prompt, then K-LoRA is switched off in the panel and nothing else changes.  Raises
    SettingsError, for the field ``enabled``, if a value cannot be read: then no field changes.
    """
    by_panel = BY_NAME["enabled"].infotext in params and TAG not in params
    if not by_panel:
        return False if field.name == "enabled" else None
    try:
        given = read_given(params)
    except SettingsError as e:
        if field.name == "enabled":
            raise SettingsError(f"the text cannot be pasted: {e}") from None
        return None
    if field.name in given:
        return given[field.name]
    if field.name == "beta":
        offset = Settings(**{name: given[name] for name in ("scale", "alpha") if name in given}).offset
        return default if offset == Settings().offset else offset
    return None if field.name in NEVER else BEFORE.get((given.get("method", ""), field.name), default)


def read_given(params: Mapping[str, str]) -> dict[str, Any]:
    """The values that ``params`` contain, by field.  Raises SettingsError with all that cannot be read."""
    texts = {field.name: find_text(params, field) for field in FIELDS}
    values = read_values({name: text for name, text in texts.items() if text is not None}, BY_NAME)
    Settings(**values)  # raises where two values exclude each other
    return values


def find_text(params: Mapping[str, str], field: Field) -> str | None:
    """The text of ``field``.  Hosts take a value like `512x512` for an image's size and split it into two values."""
    stem = field.infotext
    if f"{stem}-1" in params and f"{stem}-2" in params:
        return f"{params[f'{stem}-1']}x{params[f'{stem}-2']}"
    return params.get(stem)
