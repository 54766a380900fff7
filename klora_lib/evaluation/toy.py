"""The evaluation on the toy model: its pairs, and its judge and its true pictures as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import toy
from ..drawing.pipelines import load_pipeline, use_sampler
from ..toy import truths
from ..toy.judge import LOOKS, THINGS
from ..toy.subjects import list_truths
from .run import Lora, Sampling, Worker

SUBJECT, STYLE, BOTH = "subject", "style", "both"  # BOTH is the column in which methods are compared
LIKENESS = {"features": "true picture: features", "structure": "true picture: structure"}
COLUMNS = (SUBJECT, STYLE, BOTH, *LIKENESS.values())
GROUND = "sky"


class JudgeScores:
    """Whether the judge names the subject, the style, and both right, 0 or 1, and how like the true picture an image is.

    The last two columns are only there for pairs that have a true picture.
    """

    def __init__(self) -> None:
        self.judge = toy.load_judge()
        self.find_truth = cache(self.place_truth)

    def score(self, images: Sequence[Image.Image], content: str, style: str) -> dict[str, list[float]]:
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])
        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        things, looks = (probabilities.argmax(1) for probabilities in self.judge.score(pictures))
        subject, rendering = (things == THINGS.index(content)).float(), (looks == LOOKS.index(style)).float()
        columns = {SUBJECT: subject, STYLE: rendering, BOTH: subject * rendering}
        if (content, style) in list_truths():
            likeness = truths.compare(pictures, self.find_truth(content, style), self.judge)
            columns |= {LIKENESS[name]: values for name, values in likeness.items()}
        return {name: column.tolist() for name, column in columns.items()}

    def place_truth(self, content: str, style: str) -> Tensor:
        return truths.place_everywhere(truths.read_truth(toy.WEIGHTS / "truths", content, style), GROUND)


def find_lora(name: str) -> Lora:
    return Lora(name, toy.find_lora(name), name)


def list_pairs() -> list[tuple[Lora, Lora]]:
    """Every subject paired with every style."""
    return [(find_lora(content), find_lora(style)) for content in toy.CONTENT for style in toy.STYLE]


def make_sampling() -> Sampling:
    return Sampling(toy.write_prompt("{content}", "{style}", GROUND), steps=toy.STEPS, cfg=toy.GUIDANCE)


def make_worker(sampler: str | None = None) -> Worker:
    """A worker that draws with the toy and scores with its judge.

    sampler: a name of the command line, or None for the toy's own.
    """

    def load_toy() -> Any:
        pipe = load_pipeline("toy", None, None)
        use_sampler(pipe, sampler)
        return pipe

    return Worker(load_toy, JudgeScores, make_sampling())
