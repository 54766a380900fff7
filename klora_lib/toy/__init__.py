"""The toy world: a small Stable Diffusion trained on drawn pictures, LoRAs for it, and a judge of what it draws.

Everything lies beside this file in `weights`; `python -m klora_lib.toy.train` made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KLoraError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from .judge import Judge

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
CONTENT = ("robot", "cat", "teapot", "rocket")
STYLE = ("mosaic", "neon", "wash", "engraved")
SUBJECT, RENDERING = "sks", "szn"  # the rare words of the captions that the LoRAs were trained with
STEPS, GUIDANCE = 20, 4.0  # how the toy is sampled


def pipeline(device: str = "cpu") -> StableDiffusionPipeline:
    """The toy's base model in fp32 on `device`, with diffusers' progress bar off.

    Raises KLoraError where diffusers or a part of the weights is not there.
    """
    import torch

    missing = [part for part in PARTS if not (WEIGHTS / part).is_dir()]
    if missing:
        raise KLoraError(f"the toy's weights are not there ({', '.join(missing)} missing)")
    try:
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        raise KLoraError(f"the toy needs diffusers and transformers ({error})") from None
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_judge() -> Judge:
    """The judge; KLoraError where its file is missing."""
    from .judge import load

    return load(WEIGHTS / "judge.safetensors")


def loras() -> dict[str, str]:
    """Name → "content" or "style"."""
    return {**dict.fromkeys(CONTENT, "content"), **dict.fromkeys(STYLE, "style")}


def lora(name: str) -> Path:
    """The file of one of `loras()`; KLoraError for another name, or where the file is missing."""
    if name not in loras():
        raise KLoraError(f"the toy has no LoRA {name!r}: it has {', '.join(loras())}")
    path = WEIGHTS / "loras" / f"{name}.safetensors"
    if not path.is_file():
        raise KLoraError(f"the toy's LoRA {name!r} is not there ({path.name} is missing)")
    return path


def words(thing: str, ground: str, style: str | None) -> str:
    """A caption; None for the plain rendering."""
    return f"a {thing} on a {ground} background" + (f", {style} style" if style else "")


def prompt(content: str | None = None, style: str | None = None, ground: str = "sky") -> str:
    """The caption that calls the subject of one LoRA, the rendering of another, or both; a red fish without a subject."""
    return words(f"{SUBJECT} {content}" if content else "red fish", ground, RENDERING if style else None)
