"""What stands under a picker: a LoRA's preview, one line of facts, its trigger words; and whether two LoRAs fit.

Texts of a file are untrusted: they reach the page only through facts_html, which escapes them.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import HostError, KLoraError, LoadError, LoraFileError
from ..late import Late
from ..rule.cache import Library, Stamp, read_stamp
from ..settings import Settings
from .facts_html import mark_answer, write_facts, write_trouble

if TYPE_CHECKING:
    from ..engine import fit
    from ..hosts.contract import Host
    from ..lora import facts as lora_facts
    from ..lora import peft
    from ..lora.facts import Facts
    from . import listed
else:
    fit = Late("klora_lib.engine.fit")
    lora_facts = Late("klora_lib.lora.facts")
    peft = Late("klora_lib.lora.peft")
    listed = Late("klora_lib.webui.listed")

PREVIEWS = (".png", ".preview.png", ".jpg", ".preview.jpg", ".jpeg", ".preview.jpeg", ".webp", ".preview.webp")
MOST, LARGEST_SIDECAR = 256, 1 << 20
Key = tuple[str, "Stamp | None"]


class FactCache:
    """Reads a file's facts once for each state of the file; keeps the last ``MOST``."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Key, Facts | LoraFileError] = OrderedDict()
        self.lock = Lock()

    def read(self, path: str, name: str) -> Facts:
        """Raises LoraFileError."""
        weights = peft.find_weights(path)
        key = (os.fspath(weights), read_stamp(weights))
        with self.lock:
            found = self.kept.get(key)
        if found is None:
            try:
                found = lora_facts.read_facts(weights, name)
            except LoraFileError as e:
                found = e
            with self.lock:
                self.kept[key] = found
                while len(self.kept) > MOST:
                    self.kept.popitem(last=False)
        if isinstance(found, LoraFileError):
            raise found
        return found


def describe_lora(host: Host, cache: FactCache, name: Any) -> str:
    """HTML for one picker's value; empty where none is chosen."""
    if not isinstance(name, str) or name.strip() in ("", "None"):
        return ""
    return mark_answer(describe_name(host, cache, name), name)


def describe_name(host: Host, cache: FactCache, name: str) -> str:
    try:
        entry = host.get_lora(name)
        facts = cache.read(entry.path, entry.name)
    except (LoraFileError, LoadError) as e:
        return write_trouble(f"{e}.")
    except KLoraError as e:
        return write_trouble(f"{e}. Choose one of the list, or press the refresh button if its file is new.")
    return write_facts(facts, read_activation(Path(entry.path)), find_preview(Path(entry.path)))


def read_activation(path: Path) -> list[str]:
    """The words that the WebUI keeps as *activation text* in the .json beside the file."""
    beside = path.with_suffix(".json")
    try:
        if beside.stat().st_size > LARGEST_SIDECAR:
            return []
        said = json.loads(beside.read_text(encoding="utf-8"))
        return lora_facts.split_words(said["activation text"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def find_preview(path: Path) -> str:
    """The address under which the WebUI serves the preview beside a LoRA; empty if there is none."""
    for ending in PREVIEWS:
        beside = path.with_name(path.stem + ending)
        if stamp := read_stamp(beside):
            return f"./sd_extra_networks/thumb?filename={quote(beside.as_posix())}&mtime={stamp.changed}"
    return ""


def check_pair(host: Host, library: Library, content: Any, style: Any) -> str:
    """HTML that says why the two chosen LoRAs do not fit each other or the loaded checkpoint; nothing to see if they do."""
    if any(not isinstance(name, str) or name.strip() in ("", "None") for name in (content, style)):
        return ""
    model = find_model(host)  # before the check: a checkpoint that is loaded meanwhile is asked about again
    return mark_answer(check_names(host, library, content, style), content, style, model=model)


def find_model(host: Host) -> str:
    """The name of the checkpoint that is loaded now; empty if there is none."""
    try:
        return host.get_checkpoint_name() if host.has_model() else ""
    except (HostError, AttributeError):  # it is being replaced at this moment
        return ""


def check_names(host: Host, library: Library, content: str, style: str) -> str:
    try:
        for name in (content, style):
            host.get_lora(name)
    except KLoraError:
        return ""  # the picker says so
    try:
        one, two = listed.find_entries(host, Settings(content=content, style=style))
        files = library.read_both((one.path, one.name), (two.path, two.name))
        pair = library.pair(*files)
        if host.has_model():
            fit.refuse_misfit(pair, host.find_sites(), host.get_checkpoint_name())
    except KLoraError as e:
        if isinstance(e, HostError) and not isinstance(e, LoadError):
            return ""  # said by the panel's notice, or no checkpoint is loaded yet
        return write_trouble(f"{e}.")
    return ""
