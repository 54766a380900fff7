"""The WebUIs: one contract, one thin adapter per family, one detection by capability."""

from __future__ import annotations

import sys

from ..errors import HostError
from . import a1111, forge, ldm_patched, neo
from .contract import Host

FAMILIES = (a1111, forge, neo, ldm_patched)


def detect() -> Host:
    """The host we run in.  Raises HostError with what it lacks of the family that it is nearest to."""
    if "networks" not in sys.modules:
        raise HostError("this WebUI's built-in Lora extension, through which K-LoRA works, is not loaded")
    lacks: dict[str, list[str]] = {}
    for family in FAMILIES:
        lacks[family.NAME] = family.lacks()
        if not lacks[family.NAME]:
            return family.make()
    nearest = min(lacks, key=lambda name: len(lacks[name]))
    missed = ", ".join(lacks[nearest])
    raise HostError(f"this WebUI's LoRA loader has changed: compared with {nearest}'s, it lacks {missed}")
