"""The WebUIs: one contract, one thin adapter per family, one detection by capability."""

from __future__ import annotations

import sys

from ..errors import HostError
from . import a1111, forge, ldm_patched, neo
from .contract import Host
from .family import HOOKS

FAMILIES = (a1111, forge, neo, ldm_patched)


def detect() -> Host:
    """The host we run in.  Raises HostError with what it lacks of the family that it is nearest to."""
    if "networks" not in sys.modules:
        raise HostError("this WebUI's built-in Lora extension, through which K-LoRA works, is not loaded")
    lacks: dict[str, list[str]] = {}
    for family in FAMILIES:
        lacks[family.NAME] = family.lacks()
        if not lacks[family.NAME]:
            require_hooks()
            return family.make()
    nearest = min(lacks, key=lambda name: len(lacks[name]))
    missed = ", ".join(lacks[nearest])
    raise HostError(f"this WebUI's LoRA loader has changed: compared with {nearest}'s, it lacks {missed}")


def require_hooks() -> None:
    """Raise HostError where the WebUI does not know a hook that our script relies on: it would draw without us."""
    script = getattr(sys.modules.get("modules.scripts"), "Script", None)
    missing = [name for name in HOOKS if not hasattr(script, name)]
    if not hasattr(sys.modules.get("modules.script_callbacks"), "on_cfg_denoiser"):
        missing.append("on_cfg_denoiser")
    if not hasattr(sys.modules.get("modules.processing"), "process_images_inner"):
        missing.append("process_images_inner")
    if missing:
        raise HostError(f"this WebUI has no {', '.join(missing)}, through which K-LoRA works; AUTOMATIC1111 has all of it "
                        "since 1.10.0")  # fmt: skip
