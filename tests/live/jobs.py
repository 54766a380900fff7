"""Requests to the WebUI: plain, with K-LoRA, and the same by brute force."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TITLE = "K-LoRA"
PROBE = "K-LoRA probe"
PLAIN = {
    "prompt": "a cat on a red chair",
    "negative_prompt": "blurry",
    "steps": 6,
    "width": 64,
    "height": 64,
    "seed": 11,
    "cfg_scale": 5,
    "sampler_name": "Euler a",
}
HIRES = {
    "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 4, "denoising_strength": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    content: str
    style: str


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint and the LoRAs made for it."""

    name: str
    checkpoint: str
    attention: Pair  # attention layers only, no text encoder
    full: Pair  # the content has ff layers too, and text encoder parts; in one of them alpha is half the rank

    @property
    def uneven(self) -> Pair:
        """`full` with strengths that differ from layer to layer, so that switches spread over the steps"""
        return Pair(f"uneven_content_{self.name}", f"uneven_style_{self.name}")


def plain(**fields: object) -> dict:
    return PLAIN | fields


def scripts(title: str, settings: object) -> dict:
    return {"alwayson_scripts": {title: {"args": [settings]}}}


def klora(pair: Pair, settings: dict | None = None, **fields: object) -> dict:
    chosen = {"enabled": True, "content": pair.content, "style": pair.style, **(settings or {})}
    return plain(**fields) | scripts(TITLE, chosen)


def tag(name: str, text_encoder: float = 1, denoiser: float = 1) -> str:
    return f"<lora:{name}:{text_encoder}:{denoiser}>"


def reference(folder: Path, pair: Pair, settings: dict | None = None, **fields: object) -> dict:
    """The same job by brute force: the host adds the text encoder parts (denoiser weight 0), the probe the rest."""
    settings = settings or {}
    follow = {"content_te_weight": "content_weight", "style_te_weight": "style_weight"}
    text = {k: settings.get(k, settings.get(weight, 1)) for k, weight in follow.items()}
    own = {k: v for k, v in settings.items() if k not in follow and k != "engine"}
    job = plain(**fields)
    job["prompt"] += tag(pair.content, text["content_te_weight"], 0) + tag(pair.style, text["style_te_weight"], 0)
    files = {role: str(folder / f"{name}.safetensors") for role, name in vars(pair).items()}
    return job | scripts(PROBE, files | {"settings": own})
