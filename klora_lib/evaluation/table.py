"""From scored images to the paper's table: one row a method, mean and 95 % interval a column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Scored:
    """One image.  method: the row of the table it belongs to.  scores: column -> number, more is better."""

    method: str
    content: str
    style: str
    seed: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """Mean over pairs and seeds, and the bounds between which it lies with 95 % confidence: None where no pair has two."""

    mean: float
    low: float | None
    high: float | None


def cell(images: Sequence[Scored], column: str) -> Cell:
    """Mean and bootstrap interval: seeds are drawn anew within each pair, and the pairs are taken as they are.

    The interval therefore speaks of other seeds, not of other LoRAs.
    """
    pairs: dict[tuple[str, str], list[float]] = {}
    for image in images:
        pairs.setdefault((image.content, image.style), []).append(image.scores[column])
    mean = float(np.mean([np.mean(values) for values in pairs.values()]))
    if max(map(len, pairs.values())) == 1:
        return Cell(mean, None, None)
    rng, means = np.random.default_rng(0), np.zeros(RESAMPLES)
    for _, values in sorted(pairs.items()):  # the same interval in whatever order the pairs come
        drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
        means += np.asarray(values)[drawn].mean(axis=1)
    low, high = np.percentile(means / len(pairs), [2.5, 97.5])
    return Cell(mean, float(low), float(high))


def table(images: Iterable[Scored]) -> dict[str, dict[str, Cell]]:
    """method -> column -> cell, methods and columns in the order in which they come."""
    methods: dict[str, list[Scored]] = {}
    for image in images:
        methods.setdefault(image.method, []).append(image)
    return {name: {column: cell(own, column) for column in own[0].scores} for name, own in methods.items()}


def markdown(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """In percent, as the paper prints them; the best mean of a column is bold."""
    columns = list(next(iter(cells.values())))
    best = {column: max(row[column].mean for row in cells.values()) for column in columns}
    lines = ["| method | " + " | ".join(f"{column} ↑" for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in cells.items():
        texts = [f"**{percent(c)}**" if c.mean == best[column] else percent(c) for column, c in row.items()]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def percent(c: Cell) -> str:
    if c.low is None or c.high is None:
        return f"{100 * c.mean:.1f}"
    return f"{100 * c.mean:.1f} ({100 * c.low:.1f} to {100 * c.high:.1f})"


def as_csv(images: Sequence[Scored]) -> str:
    """One line an image."""
    out = io.StringIO()
    columns = list(images[0].scores)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "content", "style", "seed", *columns])
    for i in images:
        writer.writerow([i.method, i.content, i.style, i.seed, *(f"{i.scores[column]:.6f}" for column in columns)])
    return out.getvalue()
