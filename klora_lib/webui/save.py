"""*Save as LoRA*: what the panel's settings do, as a file in the WebUI's folder of LoRAs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import KLoraError, SettingsError
from ..export import save_parts
from ..export.save import ENDING, Saved, Wish
from ..export.segments import MOST
from ..hosts.contract import Host
from ..rule.cache import Library
from ..settings import Settings, name_arguments, quote_value, read_integer, read_settings
from .listed import plan_listed

LONGEST = 180  # bytes of a name
FORBIDDEN = re.compile(r'[<>:"/\\|?*,=\x00-\x1f\ud800-\udfff]')  # what a path, a tag or a file system reads otherwise
DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # names that Windows keeps for itself


def save_lora(
    host: Host, library: Library, args: Sequence[Any], name: Any, segments: Any, steps: Any, overwrite: Any
) -> Saved:
    """Save what the panel's values ``args`` do under ``name``; the WebUI lists it afterwards.

    Args: segments: files, each for a part of the ``steps``; 1 for one file that holds for all.
    Raises a KLoraError.  Works on the CPU alone, as a job may need the memory of the GPU.
    """
    settings: Settings = read_settings({**name_arguments(args), "enabled": True})
    count, steps = read_count(segments, "segments", MOST), read_count(steps, "steps", 1000)
    path = Path(host.get_lora_folder()) / f"{read_name(name)}{ENDING}"
    for stem in [f"{path.stem}-{n}" for n in range(1, count + 1)] if count > 1 else [path.stem]:
        listed = host.find_lora(stem)
        if listed is not None and os.path.realpath(listed.path) != os.path.realpath(path.with_name(f"{stem}{ENDING}")):
            raise SettingsError(f"another LoRA is listed as {stem!r} already, and one would hide the other", "name")
    entries, pair, plan = plan_listed(host, library, settings, steps)
    wish = Wish(path, count if count > 1 else None, overwrite=bool(overwrite))
    saved = save_parts(pair, plan, steps, [entry.path for entry in entries], wish)
    host.refresh_loras()
    return saved


def read_count(value: Any, name: str, most: int) -> int:
    try:
        return read_integer(value, 1, most)
    except (ValueError, TypeError, OverflowError):
        raise SettingsError(f"must be a whole number from 1 to {most}, not {quote_value(value)}", name) from None


def read_name(name: Any) -> str:
    """The file's name without its ending.  Raises SettingsError for a name that is a path, or that a tag cannot hold."""
    name = name.strip().removesuffix(ENDING).strip() if isinstance(name, str) else ""
    if not name:
        raise SettingsError("the file needs a name", "name")
    what = ""
    if wrong := FORBIDDEN.search(name):
        what = f"has {wrong[0]!r} in it"
    elif name.startswith("."):
        what = "begins with a dot"
    elif DEVICES.fullmatch(name):
        what = "is a device's name in Windows"
    elif len(name.encode()) > LONGEST:
        what = "is too long"
    if what:
        raise SettingsError(f"{quote_value(name)} {what}: a plain name is needed, for a file in the LoRA folder", "name")
    return name


def format_saved(saved: Saved) -> str:
    """Markdown: the files, what to know of them, and how to use them."""
    sizes = [f"**{path.stem}** ({path.stat().st_size / 1e6:.1f} MB)" for path in saved.paths]
    notes = "".join(f"\n\nNote: {escape(note, quote=False)}." for note in saved.notes)
    return f"Saved {', '.join(sizes)} in the LoRA folder.{notes}\n\n```\n{saved.use.strip()}\n```"


def format_refusal(error: KLoraError) -> str:
    return f"Nothing was saved: {escape(str(error), quote=False)}."
