"""Which file a LoRA's name stands for, and why a name stands for none."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping
from typing import Any

from ..errors import SettingsError, list_offenders
from ..settings import quote_value
from .contract import Entry

ENDINGS = (".safetensors", ".pt", ".ckpt")  # that hosts list
TWINS = "klora_twins"  # on what a host lists: the other files that it would list under this name


def match_name(name: str, listed: Mapping[str, Any]) -> str:
    """The listed name that differs from ``name`` in blanks at its ends only; ``name`` itself if there is not one such."""
    close = [other for other in listed if other.strip() == name.strip()]
    return close[0] if len(close) == 1 else name


def explain_absence(name: str, listed: Mapping[str, Any]) -> SettingsError:
    """Why there is no LoRA with this name or alias."""
    same_alias = sorted(other for other, on_disk in listed.items() if getattr(on_disk, "alias", None) == name)
    if len(same_alias) > 1:
        files = list_offenders([quote_value(each) for each in same_alias])
        return SettingsError(f"{quote_value(name)} is ambiguous, the alias of several LoRAs: give the name of one, {files}")
    said = f"there is no LoRA named {quote_value(name)} among the {len(listed)} listed"
    near = sorted(other for other in listed if other.strip().casefold() == name.strip().casefold())
    return SettingsError(said + (f"; there is {quote_value(near[0])}" if near else ""))


def refuse_twins(entry: Entry, listed: Any, folder: str) -> None:
    """Raise SettingsError if another file in ``folder`` has the same name, and is not the same: a host lists only one.

    listed: the host's own object for ``entry``.  A host makes new ones when it looks for files; until then the answer holds.
    """
    if not hasattr(listed, TWINS):
        setattr(listed, TWINS, find_twins(entry.path, folder))
    if twins := getattr(listed, TWINS):
        files = [os.path.relpath(path, folder) for path in (entry.path, *twins)]
        told = list_offenders([quote_value(path) for path in files])
        raise SettingsError(f"{quote_value(entry.name)} is the name of {len(files)} different files ({told}): rename one")


def find_twins(path: str, folder: str) -> list[str]:
    """The other files below ``folder`` with the name of ``path``, whatever their endings, and with another content."""
    stem, own = os.path.splitext(os.path.basename(path))[0], os.path.realpath(path)
    twins = []
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            root, ending = os.path.splitext(name)
            other = os.path.join(where, name)
            if root == stem and ending.lower() in ENDINGS and os.path.realpath(other) != own and is_other(other, own):
                twins.append(other)
    return sorted(twins)


def is_other(a: str, b: str) -> bool:
    try:
        return not filecmp.cmp(a, b, shallow=False)
    except OSError:  # gone meanwhile
        return False
