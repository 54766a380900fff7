"""The toy world: a small Stable Diffusion trained on drawn pictures, LoRAs for it, and a judge of what it draws.

Everything lies beside this file in `weights`; `python -m klora_lib.toy.train` made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KLoraError, first_line

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from .judge import Judge

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
CONTENT = ("teapot", "cat", "robot", "rocket")
STYLE = ("wash", "mosaic", "neon", "engraved")
SUBJECT, RENDERING = "sks", "szn"  # the rare words of the captions that the LoRAs were trained with
STEPS, GUIDANCE = 20, 2.5  # how the toy is sampled


def pipeline() -> StableDiffusionPipeline:
    """The toy's base model in fp32 on the CPU, with diffusers' progress bar off.

    Raises KLoraError where diffusers or a part of the weights is not there, or damaged.
    """
    import torch

    missing = [part for part in PARTS if not (WEIGHTS / part).is_dir()]
    if missing:
        raise KLoraError(f"the toy's weights are not there ({', '.join(missing)} missing)")
    try:
        import transformers  # noqa: F401  without which diffusers has a stand-in for its pipeline
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        raise KLoraError(f"the toy needs diffusers and transformers ({error})") from None
    try:
        pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, local_files_only=True)
    except Exception as error:  # noqa: BLE001  diffusers, transformers and safetensors raise all kinds for a damaged file
        raise KLoraError(f"the toy's weights cannot be loaded ({first_line(error)})") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_judge() -> Judge:
    """The judge; KLoraError where its file is missing or damaged."""
    from .judge import load

    return load(WEIGHTS / "judge.safetensors")


def loras() -> dict[str, str]:
    """Name → "content" or "style"."""
    return {**dict.fromkeys(CONTENT, "content"), **dict.fromkeys(STYLE, "style")}


def lora(name: str, role: str | None = None) -> Path:
    """The file of one of `loras()`; KLoraError for another name or one of another role, or where the file is missing."""
    known = [each for each, its in loras().items() if role in (None, its)]
    if name not in known:
        kind = f"{role} LoRA" if role else "LoRA"
        raise KLoraError(f"the toy has no {kind} {name!r}: it has {', '.join(known)}")
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
