"""The paper's table from scored images: a row for each method, with a mean and a 95 % interval in each column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class ScoredImage:
    """The scores of one image.

    method: its row in the table.  scores: column -> number, higher is better; a column may be missing for some pairs.
    """

    method: str
    content: str
    style: str
    seed: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """The mean over pairs and seeds, and its 95 % confidence interval: None if no pair has two images."""

    mean: float
    low: float | None
    high: float | None


def measure_cell(images: Sequence[ScoredImage], column: str) -> Cell:
    """The mean, over the pairs that have the column, and its bootstrap interval.

    Seeds are resampled within each pair; pairs are not resampled.

    So the interval says how much the mean depends on the seeds, not how much it depends on the LoRAs.
    """
    pairs: dict[tuple[str, str], list[float]] = {}
    for image in images:
        if column in image.scores:
            pairs.setdefault((image.content, image.style), []).append(image.scores[column])
    mean = float(np.mean([np.mean(values) for values in pairs.values()]))
    if max(map(len, pairs.values())) == 1:
        return Cell(mean, None, None)
    rng, means = np.random.default_rng(0), np.zeros(RESAMPLES)
    for _, values in sorted(pairs.items()):  # so the interval does not depend on the order of the pairs
        drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
        means += np.asarray(values)[drawn].mean(axis=1)
    low, high = np.percentile(means / len(pairs), [2.5, 97.5])
    return Cell(mean, float(low), float(high))


def make_table(images: Iterable[ScoredImage]) -> dict[str, dict[str, Cell]]:
    """method -> column -> cell; methods and columns keep their order."""
    methods: dict[str, list[ScoredImage]] = {}
    for image in images:
        methods.setdefault(image.method, []).append(image)
    return {name: {column: measure_cell(group, column) for column in list_columns(group)} for name, group in methods.items()}


def list_columns(images: Iterable[ScoredImage]) -> list[str]:
    """The columns that any of the images has, in their order."""
    return [*dict.fromkeys(column for image in images for column in image.scores)]


def format_markdown(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """A Markdown table in percent, as in the paper; the best mean of each column is bold."""
    columns = list(next(iter(cells.values())))
    best = {column: max(row[column].mean for row in cells.values()) for column in columns}
    lines = ["| method | " + " | ".join(f"{column} ↑" for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in cells.items():
        texts = [f"**{format_percent(c)}**" if c.mean == best[column] else format_percent(c) for column, c in row.items()]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def format_percent(c: Cell) -> str:
    if c.low is None or c.high is None:
        return f"{100 * c.mean:.1f}"
    return f"{100 * c.mean:.1f} ({100 * c.low:.1f} to {100 * c.high:.1f})"


def format_csv(images: Sequence[ScoredImage], columns: Sequence[str] | None = None) -> str:
    """A CSV text with one line for each image.  columns: of scores; None: those that any image has."""
    out = io.StringIO()
    columns = list_columns(images) if columns is None else columns
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "content", "style", "seed", *columns])
    for i in images:
        numbers = [f"{i.scores[column]:.6f}" if column in i.scores else "" for column in columns]
        writer.writerow([i.method, i.content, i.style, i.seed, *numbers])
    return out.getvalue()
