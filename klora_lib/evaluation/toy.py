"""The evaluation on the toy model: its pairs, and its judge as a metric."""

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
    """The judge's probabilities in 0…1: of the subject, of the rendering, and of both (their product)."""

    def __init__(self) -> None:
        self.judge = toy.load_judge()

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> dict[str, list[float]]:
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])
        things, looks = self.judge.score(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        subject, rendering = things[:, THINGS.index(content)], looks[:, LOOKS.index(style)]
        columns = {"subject": subject, "rendering": rendering, BOTH: subject * rendering}
        return {name: column.tolist() for name, column in columns.items()}


def find_lora(name: str) -> Lora:
    return Lora(name, toy.find_lora(name), name)


def list_pairs() -> list[tuple[Lora, Lora]]:
    """Every subject paired with every style."""
    return [(find_lora(content), find_lora(style)) for content in toy.CONTENT for style in toy.STYLE]


def make_sampling() -> Sampling:
    return Sampling(toy.write_prompt("{content}", "{style}"), steps=toy.STEPS, cfg=toy.GUIDANCE)


def make_worker(sampler: str | None = None) -> Worker:
    """A worker that draws with the toy and scores with its judge.

    sampler: a name of the command line, or None for the toy's own.
    """

    def load_toy() -> Any:
        pipe = load_pipeline("toy", None, None)
        use_sampler(pipe, sampler)
        return pipe

    return Worker(load_toy, JudgeScores, make_sampling())
