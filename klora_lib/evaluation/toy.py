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
from ..drawing.grid import draw_grid
from ..drawing.pipelines import load_pipeline, use_sampler
from ..toy import truths
from ..toy.judge import LOOKS, THINGS
from ..toy.subjects import list_truths
from .run import Lora, Sampling, Task, Worker
from .table import ScoredImage

SUBJECT, STYLE, BOTH = "right subject", "right style", "both"  # BOTH is the column in which methods are compared
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
        pictures = read_pixels(images)
        things, looks = (probabilities.argmax(1) for probabilities in self.judge.score(pictures))
        subject, rendering = (things == THINGS.index(content)).float(), (looks == LOOKS.index(style)).float()
        columns = {SUBJECT: subject, STYLE: rendering, BOTH: subject * rendering}
        if (content, style) in list_truths():
            likeness = truths.compare(pictures, self.find_truth(content, style), self.judge)
            columns |= {LIKENESS[name]: values for name, values in likeness.items()}
        return {name: column.tolist() for name, column in columns.items()}

    def place_truth(self, content: str, style: str | None) -> Tensor:
        return truths.place_everywhere(truths.read_truth(toy.WEIGHTS / "truths", content, style), GROUND)


def read_pixels(images: Sequence[Image.Image]) -> Tensor:
    """[n, 3, height, width] in 0…1."""
    pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def find_lora(name: str, role: str | None = None) -> Lora:
    return Lora(name, toy.find_lora(name, role), name)


def list_pairs() -> list[tuple[Lora, Lora]]:
    """Every subject paired with every style."""
    return [(find_lora(content), find_lora(style)) for content in toy.CONTENT for style in toy.STYLE]


def list_true_pairs() -> list[tuple[Lora, Lora]]:
    """The pairs whose true picture exists."""
    return [(find_lora(content), find_lora(style)) for content, style in list_truths()]


def make_sampling(prompt: str | None = None) -> Sampling:
    """prompt: None for one that asks for the subject, which the style LoRAs need no word for."""
    prompt = toy.write_prompt("{content}", GROUND) if prompt is None else prompt
    return Sampling(prompt, steps=toy.STEPS, cfg=toy.GUIDANCE)


def make_worker(sampler: str | None = None) -> Worker:
    """A worker that draws with the toy and scores with its judge.

    sampler: a name of the command line, or None for the toy's own.
    """

    def load_toy() -> Any:
        pipe = load_pipeline("toy", None, None)
        use_sampler(pipe, sampler)
        return pipe

    return Worker(load_toy, JudgeScores, make_sampling())


KNOWN = ("car", "apple", "crown", "bus", "elephant", "umbrella")  # things of the base model that all styles' sets have
NAMED = "named right"


def measure_alone(worker: Worker, seeds: Sequence[int]) -> list[ScoredImage]:
    """Whether the judge names what a LoRA was trained for where it acts alone: a subject, or the style of known things."""
    judge, found = toy.load_judge(), []
    for content, style in [(find_lora(name), find_lora(toy.STYLE[0])) for name in toy.CONTENT]:
        images = worker.draw_images(Task(content.name, {"method": "content"}, content, style, tuple(seeds)), seeds)
        right = judge.score(read_pixels(images))[0].argmax(1) == THINGS.index(content.name)
        found += [make_named(content, seed, value) for seed, value in zip(seeds, right.tolist())]
    for content, style in [(find_lora(toy.CONTENT[0]), find_lora(name)) for name in toy.STYLE]:
        for n, thing in enumerate(KNOWN):
            if own := [seed for seed in seeds if seed % len(KNOWN) == n]:
                asked = make_sampling(toy.write_caption(thing, GROUND, None))
                images = worker.draw_images(Task(style.name, {"method": "style"}, content, style, tuple(own)), own, asked)
                right = judge.score(read_pixels(images))[1].argmax(1) == LOOKS.index(style.name)
                found += [make_named(style, seed, value) for seed, value in zip(own, right.tolist())]
    return found


def make_named(lora: Lora, seed: int, right: bool) -> ScoredImage:
    return ScoredImage(lora.name, lora.name, "", seed, {NAMED: float(right)})


OWN = "subject alone, beside its own drawing"
OTHER = "style alone on a car, beside the true picture"


def measure_bounds(worker: Worker, seeds: Sequence[int]) -> list[ScoredImage]:
    """What the likeness to a true picture can be at best, and what it is of a picture with the right style alone.

    At best: the content LoRA alone, beside its own drawing, from which it learned.
    """
    metric, found = JudgeScores(), []
    for content, style in list_true_pairs():
        for name, method, prompt, pair in (
            (OWN, "content", toy.write_prompt(content.name, GROUND), (content.name, None)),
            (OTHER, "style", toy.write_prompt(None, GROUND), (content.name, style.name)),
        ):
            task = Task(name, {"method": method}, content, style, tuple(seeds))
            images = worker.draw_images(task, seeds, make_sampling(prompt))
            likeness = truths.compare(read_pixels(images), metric.find_truth(*pair), metric.judge)
            found += [
                ScoredImage(name, content.name, style.name, seed, {LIKENESS[k]: float(v[n]) for k, v in likeness.items()})
                for n, seed in enumerate(seeds)
            ]
    return found


SHEET = ("content", "style", "direct", "switch", "est", "klora")  # the methods of a contact sheet
LABELS = {"content": "subject", "style": "style, of a car", "direct": "both added", "klora": "K-LoRA"}


def draw_sheet(
    worker: Worker,
    pairs: Sequence[tuple[Lora, Lora]],
    methods: Sequence[str] = SHEET,
    seed: int = 0,
    across: bool = False,
    has_truth: bool = True,
    least: int = 0,
) -> Image.Image:
    """A contact sheet: methods down and the true pictures last, where there are any; pairs across.

    across: the other way round.  least: pixels; narrower pictures are enlarged.  The style alone is shown on a thing that
    the base model knows, because without the content LoRA its word means nothing.
    """
    rows: list[list[Image.Image | None]] = []
    for method in methods:
        asked = make_sampling(toy.write_prompt(None, GROUND)) if method == "style" else None
        tasks = [Task(method, {"method": method}, *pair, (seed,)) for pair in pairs]
        rows.append([worker.draw_images(task, task.seeds, asked)[0] for task in tasks])
    labels = [LABELS.get(method, method) for method in methods]
    known = list_truths()
    if has_truth and any((content.name, style.name) in known for content, style in pairs):
        rows.append([show_truth(content.name, style.name) for content, style in pairs])
        labels.append("true picture")
    heads = [f"{content.name}\n{style.name}" for content, style in pairs]
    if across:
        return draw_grid([list(column) for column in zip(*rows)], heads, labels, least)
    return draw_grid(rows, labels, heads, least)


def show_truth(content: str, style: str) -> Image.Image | None:
    """The pair's true picture; None if there is none."""
    known = (content, style) in list_truths()
    return truths.show_truth(toy.WEIGHTS / "truths", content, style, GROUND) if known else None
