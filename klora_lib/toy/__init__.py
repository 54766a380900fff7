"""The toy: a small Stable Diffusion trained on emoji, LoRAs for it, and a judge, a classifier of its images.

All weights are in the folder `weights` beside this file; `python -m klora_lib.toy.train` made them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KLoraError, quote_first_line
from .subjects import STYLES, SUBJECTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from .judge import Judge

WEIGHTS = Path(__file__).parent / "weights"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
CONTENT, STYLE = tuple(SUBJECTS), tuple(STYLES)
SUBJECT = "sks"  # the content LoRAs' trigger word; the style LoRAs have none
STEPS, GUIDANCE = 20, 1.0  # sampler steps and guidance scale of the toy


def load_pipeline() -> StableDiffusionPipeline:
    """The toy's base model in fp32 on the CPU, with diffusers' progress bar off.

    Raises KLoraError if diffusers is not installed, or if weights are missing or damaged.
    """
    import torch

    missing = [part for part in PARTS if not (WEIGHTS / part).is_dir()]
    if missing:
        raise KLoraError(f"the toy's weights are not there ({', '.join(missing)} missing)")
    try:
        import transformers  # noqa: F401  without it, diffusers has no usable pipeline
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        raise KLoraError(f"the toy needs diffusers and transformers ({error})") from None
    try:
        pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, local_files_only=True)
    except Exception as error:  # noqa: BLE001  a damaged file leads to many types of exceptions
        raise KLoraError(f"the toy's weights cannot be loaded ({quote_first_line(error)})") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_judge() -> Judge:
    """The judge.  Raises KLoraError if its file is missing or damaged."""
    from .judge import read_judge

    return read_judge(WEIGHTS / "judge.safetensors")


def list_loras() -> dict[str, str]:
    """Name → "content" or "style"."""
    return {**dict.fromkeys(CONTENT, "content"), **dict.fromkeys(STYLE, "style")}


def find_lora(name: str, role: str | None = None) -> Path:
    """The file of one of the toy's LoRAs.

    Raises KLoraError if there is no LoRA of this name and role, or if its file is missing.
    """
    names = [each for each, its in list_loras().items() if role in (None, its)]
    if name not in names:
        kind = f"{role} LoRA" if role else "LoRA"
        raise KLoraError(f"the toy has no {kind} {name!r}: it has {', '.join(names)}")
    path = WEIGHTS / "loras" / f"{name}.safetensors"
    if not path.is_file():
        raise KLoraError(f"the toy's LoRA {name!r} is not there ({path.name} is missing)")
    return path


def write_caption(thing: str, ground: str, style: str | None) -> str:
    """The caption of a picture.  ``style``: None for the plain rendering."""
    return f"a {thing} on a {ground} background" + (f", {style} style" if style else "")


def write_prompt(content: str | None = None, ground: str = "sky") -> str:
    """A prompt for the content LoRA's subject; without ``content``, for a car."""
    return write_caption(f"{SUBJECT} {content}" if content else "car", ground, None)
