"""The alpha of PEFT adapters, which diffusers keeps not beside the tensors but in the file's metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENTRY = "lora_adapter_metadata"  # a JSON object whose keys open with the component: "unet.lora_alpha", …
COMPONENTS = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}


@dataclass(frozen=True)
class Adapter:
    """What one component's configuration says of alpha."""

    alpha: float
    patterns: Mapping[str, float] = field(default_factory=dict)  # layer, or its end, or a regular expression → alpha
    rank_stabilised: bool = False

    def alpha_of(self, layer: str, rank: int) -> float:
        """The alpha by which scale = alpha/rank is right: rank-stabilised LoRA means alpha/√rank (arXiv 2312.03732)."""
        found = [alpha for pattern, alpha in self.patterns.items() if matches(pattern, layer)]
        alpha = found[0] if found else self.alpha
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def matches(pattern: str, layer: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        return layer == pattern or layer.endswith("." + pattern)


def adapters(metadata: Mapping[str, str]) -> dict[str, Adapter]:
    """Role → configuration, from a safetensors file's metadata; empty where there is none, or none that can be read."""
    try:
        entries = json.loads(metadata.get(ENTRY, "{}"))
        return {role: adapter(entries, name) for name, role in COMPONENTS.items() if f"{name}.lora_alpha" in entries}
    except (ValueError, TypeError, AttributeError):
        return {}


def adapter(entries: Mapping[str, Any], component: str) -> Adapter:
    patterns = entries.get(f"{component}.alpha_pattern") or {}
    return Adapter(
        float(entries[f"{component}.lora_alpha"]),
        {str(layer): float(alpha) for layer, alpha in patterns.items()},
        bool(entries.get(f"{component}.use_rslora")),
    )
