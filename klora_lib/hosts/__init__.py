"""The WebUIs: one contract, one thin adapter per family, one detection by capability."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..errors import HostError
from ..late import Late
from .family import HOOKS

if TYPE_CHECKING:
    from .contract import Host

FAMILIES: tuple[Any, ...] = tuple(Late(f"{__name__}.{name}") for name in ("a1111", "forge", "neo", "ldm_patched"))


def detect() -> Host:
    """The host we run in.  Raises HostError that lists what is missing, compared with the most similar family."""
    if "networks" not in sys.modules:
        raise HostError("this WebUI's built-in Lora extension, through which K-LoRA works, is not loaded")
    missing: dict[str, list[str]] = {}
    for family in FAMILIES:
        missing[family.NAME] = family.find_missing()
        if not missing[family.NAME]:
            require_hooks()
            return family.make_host()
    nearest = min(missing, key=lambda name: len(missing[name]))
    lacking = ", ".join(missing[nearest])
    raise HostError(f"this WebUI's LoRA loader has changed: compared with {nearest}'s, it lacks {lacking}")


def require_hooks() -> None:
    """Raise HostError if the WebUI does not call a hook that our script needs: it would draw without K-LoRA."""
    script = getattr(sys.modules.get("modules.scripts"), "Script", None)
    missing = [name for name in HOOKS if not hasattr(script, name)]
    if not hasattr(sys.modules.get("modules.script_callbacks"), "on_cfg_denoiser"):
        missing.append("on_cfg_denoiser")
    if not hasattr(sys.modules.get("modules.processing"), "process_images_inner"):
        missing.append("process_images_inner")
    if missing:
        raise HostError(f"this WebUI has no {', '.join(missing)}, through which K-LoRA works; AUTOMATIC1111 has all of it "
                        "since 1.10.0")  # fmt: skip
