"""The tables of the evaluation on the toy world: what their rows are, and where they stand in a document.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is written around them stays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..errors import SettingsError
from ..settings import read_settings
from . import toy
from .run import Lora, Task, Workers
from .table import Scored, cell, markdown, percent, table

SEEDS, MOST = 20, 20  # a pair; at once
ALPHAS, BETAS = (1.0, 1.5, 2.0), (0.25, 0.5, 0.75)  # the paper's grid
KS: tuple[int | str, ...] = (4, 16, "auto", 256, 1024, 2**40)  # the last: every element


@dataclass(frozen=True)
class Row:
    """settings: what is not a default.  exchanged: the content file where the style belongs, and the reverse.
    sampler: one of the command line's, None for the toy's own."""

    settings: Mapping[str, Any]
    exchanged: bool = False
    sampler: str | None = None

    @property
    def key(self) -> str:
        """What is not a default, in words: the same for rows that draw the same images."""
        plain = numbers({})
        different = [f"{name} {value}" for name, value in numbers(self.settings).items() if value != plain[name]]
        different += ["files exchanged"] * self.exchanged + [f"sampler {self.sampler}"] * (self.sampler is not None)
        return ", ".join(different) or "defaults"


def numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, β as the number that acts."""
    read = read_settings(dict(settings))
    return {**vars(read), "beta": read.offset}


Rows = Mapping[str, Row]
EXCHANGED = "klora, files exchanged"
METHODS: Rows = {
    "content alone": Row({"method": "content"}),
    "style alone": Row({"method": "style"}),
    "direct": Row({"method": "direct"}),
    "direct, half of each": Row({"method": "direct", "content_weight": 0.5, "style_weight": 0.5}),
    "switch": Row({"method": "switch"}),
    "random": Row({"method": "random"}),
    "fixed": Row({"method": "fixed"}),
    "topk": Row({"method": "topk"}),
    "no-gamma": Row({"method": "no-gamma"}),
    "klora, s": Row({}),
    "klora, s*": Row({"scale": "s*"}),
    EXCHANGED: Row({}, exchanged=True),
}
SHORT = ("direct", "switch", "klora, s", "klora, s*", EXCHANGED)
SAMPLERS = {"Euler Karras": None, "Euler": "Euler", "Euler a": "Euler a"}
TABLES: Mapping[str, Rows] = {
    "methods": METHODS,
    "samplers": {
        f"{name}: {sampler}": replace(METHODS[name], sampler=given)
        for (sampler, given), name in product(SAMPLERS.items(), SHORT)
    },
    "k": {("all elements" if k == KS[-1] else f"K = {k}"): Row({"k": k}) for k in KS},
    "layers": {name: Row({"layers": name}) for name in ("all", "attention", "attention-only")},
    "gamma": {f"γ = {gamma}": Row({"gamma": gamma}) for gamma in ("auto", "mean-ratio", 0.5, 1.0, 2.0)},
    "grid": {f"α = {a}, β = {b}": Row({"alpha": a, "beta": b}) for a, b in product(ALPHAS, BETAS)},
}


def tasks(row: Row, pairs: Sequence[tuple[Lora, Lora]], seeds: int) -> Iterator[Task]:
    for content, style in pairs:
        if row.exchanged:
            content, style = replace(content, path=style.path), replace(style, path=content.path)
        batch = 1 if row.settings.get("method") == "random" else MOST
        yield Task(row.key, row.settings, content, style, tuple(range(seeds)), batch)


def measured(
    tables: Mapping[str, Rows],
    pairs: Sequence[tuple[Lora, Lora]],
    seeds: int,
    workers: Mapping[str | None, Workers],
    known: dict[tuple[str, str, str], list[Scored]],
    keep: Callable[[Sequence[Scored]], None] = lambda images: None,
) -> dict[str, list[Scored]]:
    """The images of each table's rows; rows that draw the same are drawn once.

    Args: workers: by sampler.  known: what is already measured, by row's key, content and style; what is new goes in.
        keep: told of what is new, task by task.
    """
    different = {row.key: row for rows in tables.values() for row in rows.values()}
    for sampler, work in workers.items():
        rows = [row for row in different.values() if row.sampler == sampler]
        asked = [task for row in rows for task in tasks(row, pairs, seeds)]
        todo = [task for task in asked if len(known.get(place(task), ())) != seeds]
        began = time.monotonic()
        for number, (task, images) in enumerate(zip(todo, work(todo)), 1):
            known[place(task)] = images
            keep(images)
            if number == len(todo) or todo[number].method != task.method:
                done = f"{number}/{len(todo)}, {time.monotonic() - began:.0f} s"
                print(f"{task.method} ({done})", file=sys.stderr, flush=True)
    return {
        table: [
            replace(image, method=name) for name, row in rows.items() for task in tasks(row, pairs, seeds)
            for image in known[place(task)]
        ]
        for table, rows in tables.items()
    }  # fmt: skip


def place(task: Task) -> tuple[str, str, str]:
    return task.method, task.content.name, task.style.name


def written(name: str, images: Sequence[Scored]) -> dict[str, str]:
    """The text at each mark that a table's images fill."""
    if name == "grid":
        return {name: grid_table(images)}
    if name == "methods":
        behind = {image.method: "direct" for image in images if image.method != "direct"}
        pairs = pair_table([i for i in images if i.method in SHORT[:4]])
        return {name: markdown(table(images)), "ahead": ahead_table(images, behind), "pairs": pairs}
    if name == "samplers":
        behind = {f"klora, s: {sampler}": f"direct: {sampler}" for sampler in SAMPLERS}
        return {name: markdown(table(images)), "ahead by sampler": ahead_table(images, behind)}
    return {name: markdown(table(images))}


def ahead_table(images: Sequence[Scored], behind: Mapping[str, str]) -> str:
    """By how much a row is ahead of another (`behind`: row → row), the same seeds compared in the column `both`."""
    scores = {(i.method, i.content, i.style, i.seed): i.scores[toy.BOTH] for i in images}
    lines = ["| method | ahead by | pairs ahead |", "|---|---|---|"]
    for name, other in behind.items():
        own = [
            replace(i, scores={"ahead": i.scores[toy.BOTH] - scores[other, i.content, i.style, i.seed]})
            for i in images if i.method == name
        ]  # fmt: skip
        pairs: dict[tuple[str, str], float] = {}
        for i in own:
            pairs[i.content, i.style] = pairs.get((i.content, i.style), 0) + i.scores["ahead"]
        won = sum(total > 0 for total in pairs.values())
        lines.append(f"| {name} | {percent(cell(own, 'ahead'))} | {won} of {len(pairs)} |")
    return "\n".join(lines) + "\n"


def grid_table(images: Sequence[Scored]) -> str:
    """α across, β down, as in the paper's appendix; of the column `both`."""
    lines = ["| β \\ α | " + " | ".join(map(str, ALPHAS)) + " |", "|---" * (len(ALPHAS) + 1) + "|"]
    rows = table(images)
    for b in BETAS:
        lines.append(f"| {b} | " + " | ".join(percent(rows[f"α = {a}, β = {b}"][toy.BOTH]) for a in ALPHAS) + " |")
    return "\n".join(lines) + "\n"


def pair_table(images: Sequence[Scored]) -> str:
    """Of each pair, the column `both` by each method."""
    methods = [*dict.fromkeys(image.method for image in images)]
    lines = ["| content | style | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for content, style in dict.fromkeys((image.content, image.style) for image in images):
        own = [[i for i in images if (i.content, i.style, i.method) == (content, style, m)] for m in methods]
        lines.append(f"| {content} | {style} | " + " | ".join(percent(cell(of, toy.BOTH)) for of in own) + " |")
    return "\n".join(lines) + "\n"


def placed(text: str, name: str, new: str) -> str:
    """`text` with `new` between the marks called `name`."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not all(mark in text for mark in marks):
        where = f"between {marks[0]} and {marks[1]}"
        raise SettingsError(f"has no place for the table {name!r}, which belongs {where}", "document")
    before, rest = text.split(marks[0], 1)
    return f"{before}{marks[0]}\n{new}{marks[1]}{rest.split(marks[1], 1)[1]}"


def filled(text: str, drawn: Mapping[str, Sequence[Scored]], setting: str) -> str:
    """The document with all its tables, and how they were measured."""
    for name, images in drawn.items():
        for mark, new in written(name, images).items():
            text = placed(text, mark, new)
    return placed(text, "setting", setting)


def complete(text: str) -> None:
    """Raises SettingsError where the document lacks a table's place: before an hour is spent for nothing."""
    for name in (*TABLES, "ahead", "ahead by sampler", "pairs", "setting"):
        placed(text, name, "")
