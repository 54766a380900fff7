"""``--probe``: the style discrepancy D of EST-LoRA, which stands in β's place, measured on one image of each LoRA."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..diffusers import klora
from ..drawing import pipelines
from ..drawing.draw import draw_images
from ..errors import KLoraError, SettingsError
from ..evaluation.metrics import Encoder
from ..settings import Settings


def measure_beta(args: argparse.Namespace, settings: Settings, steps: int, seed: int) -> float:
    """D of the arguments' LoRAs.  Raises SettingsError where they do not go with a measurement, before a model is loaded."""
    if settings.method != "est":
        raise SettingsError(f"measures the β of the method est, and the method is {settings.method}", "probe")
    if settings.beta is not None:
        raise SettingsError("is measured by --probe, so it cannot be given as well", "beta")
    if not args.dino:
        raise SettingsError("is needed to compare the two images", "dino")
    prompts = args.prompt or (make_toy_prompts(args) if args.probe == "toy" else [])
    if len(prompts) not in (1, 2):
        raise SettingsError(f"is needed, one text for both images or one for each, not {len(prompts)}", "prompt")
    return measure_discrepancy(args.probe, args.dino, (Path(args.content), Path(args.style)), prompts, steps, seed)


def make_toy_prompts(args: argparse.Namespace) -> list[str]:
    toy = pipelines.import_toy()
    return [toy.write_prompt(Path(args.content).stem), toy.write_prompt()]


def measure_discrepancy(
    model: str, encoder: str, paths: tuple[Path, Path], prompts: Sequence[str], steps: int, seed: int
) -> float:
    """D = 1 − cos of the embeddings of two images (EST-LoRA, arXiv 2508.02165), from one seed, each with one LoRA alone."""
    device = torch.device(pipelines.choose_device(None))
    encode = Encoder(encoder, "dino", device)
    try:
        pipe = pipelines.load_pipeline(model, None, None)
    except KLoraError as e:
        raise (e.blame("probe") if e.field == "model" else e) from None
    cfg = pipelines.import_toy().GUIDANCE if model == "toy" else None
    pipe.set_progress_bar_config(disable=True)
    images: list[Any] = []
    for role, other, prompt in (("content", "style", prompts[0]), ("style", "content", prompts[-1])):
        settings: dict[str, Any] = {"method": role, f"{other}_te_weight": 0.0}
        block = klora(pipe, *paths, seed=seed, **settings)
        given = pipelines.make_arguments(prompt, "", steps, cfg, None)
        images += draw_images(pipe, block, **given, generator=torch.Generator().manual_seed(seed))[0]
    one, two = encode.embed(images)
    return max(0.0, 1.0 - float(one @ two))
