"""The toy world as something to evaluate on: its pairs, and its judge as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import toy
from ..drawing.pipelines import load_pipeline, use_sampler
from ..toy.judge import LOOKS, THINGS
from .run import Lora, Sampling, Worker

BOTH = "both"  # the column in which methods are compared


class JudgeScores:
    """How sure the judge is, from 0 to 1: of the subject, of the rendering, and of both at once (their product)."""

    def __init__(self) -> None:
        self.judge = toy.load_judge()

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> dict[str, list[float]]:
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])
        things, looks = self.judge.score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        subject, rendering = things[:, THINGS.index(content)], looks[:, LOOKS.index(style)]
        columns = {"subject": subject, "rendering": rendering, BOTH: subject * rendering}
        return {name: column.tolist() for name, column in columns.items()}


def lora(name: str) -> Lora:
    return Lora(name, toy.find_lora(name), name)


def pairs() -> list[tuple[Lora, Lora]]:
    """Every subject with every style."""
    return [(lora(content), lora(style)) for content in toy.CONTENT for style in toy.STYLE]


def sampling() -> Sampling:
    return Sampling(toy.write_prompt("{content}", "{style}"), steps=toy.STEPS, cfg=toy.GUIDANCE)


def worker(sampler: str | None = None) -> Worker:
    """Draws with the toy and asks its judge.  sampler: one of the command line's; None is the toy's own."""

    def load_it() -> Any:
        pipe = load_pipeline("toy", None, None)
        use_sampler(pipe, sampler)
        return pipe

    return Worker(load_it, JudgeScores, sampling())
