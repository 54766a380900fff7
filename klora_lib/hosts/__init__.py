"""The WebUIs: one contract, one thin adapter per family, one detection by capability."""

from __future__ import annotations

from ..errors import HostError
from . import a1111, forge, ldm_patched, neo
from .contract import Host

FAMILIES = (a1111, forge, neo, ldm_patched)


def detect() -> Host:
    """The host we run in.  Raises HostError with what was missed where no family fits."""
    missed = []
    for family in FAMILIES:
        lacks = family.lacks()
        if not lacks:
            return family.make()
        missed.append(f"{family.NAME}'s {', '.join(lacks)}")
    raise HostError("this WebUI's LoRA loader is not one that K-LoRA knows: it lacks " + "; ".join(missed))
