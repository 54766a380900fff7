"""The tables of the evaluation on the toy model: their rows, and their places in a document.

A table's place is between `<!-- NAME -->` and `<!-- /NAME -->`; the text around it is not changed.
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
from .table import ScoredImage, format_markdown, format_percent, make_table, measure_cell

SEEDS, MAX_BATCH = 20, 20  # seeds for each pair; images drawn at once
ALPHAS, BETAS = (1.0, 1.5, 2.0), (0.25, 0.5, 0.75)  # the paper's grid
KS: tuple[int | str, ...] = (4, "auto", 256, "all")
TURNS = (1, 2, 5)  # steps of each LoRA's turn, of the method switch
BALANCES = (-0.5, -0.25, 0.0, 0.25, 0.5)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    settings: those that are not the default.  is_exchanged: whether the content file is used as style, and the style file
    as content.  sampler: a name of the command line, or None for the toy's own.
    """

    settings: Mapping[str, Any]
    is_exchanged: bool = False
    sampler: str | None = None

    @property
    def key(self) -> str:
        """What is not the default, in words.  Rows that draw the same images have the same key."""
        default = complete_settings({})
        different = [f"{name} {value}" for name, value in complete_settings(self.settings).items() if value != default[name]]
        different += ["files exchanged"] * self.is_exchanged + [f"sampler {self.sampler}"] * (self.sampler is not None)
        return ", ".join(different) or "defaults"


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, with the value of β that is used."""
    read = read_settings(dict(settings))
    return {**vars(read), "beta": read.offset}


Rows = Mapping[str, Row]
Pairs = Sequence[tuple[Lora, Lora]]
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
    "est": Row({"method": "est"}),
    "np": Row({"method": "np"}),
    "np, hard": Row({"method": "np", "mu": 1e9}),
    "average": Row({"method": "average"}),
    "ties": Row({"method": "ties"}),
    "klora, s": Row({}),
    "klora, s*": Row({"scale": "s*"}),
    EXCHANGED: Row({}, is_exchanged=True),
}
SHORT = ("direct", "switch", "est", "klora, s", "klora, s*")
SAMPLERS = {"Euler Karras": None, "Euler": "Euler", "Euler a": "Euler a"}
TABLES: Mapping[str, Rows] = {
    "methods": METHODS,
    "samplers": {
        f"{name}: {sampler}": replace(METHODS[name], sampler=given)
        for (sampler, given), name in product(SAMPLERS.items(), SHORT)
    },
    "k": {("all elements" if k == "all" else f"K = {k}"): Row({"k": k}) for k in KS},
    "layers": {name: Row({"layers": name}) for name in ("all", "attention", "attention-only")},
    "gamma": {f"γ = {gamma}": Row({"gamma": gamma}) for gamma in ("auto", "mean-ratio", 0.5, 2.0)},
    "balance": {f"balance {b:g}": Row({"balance": b}) for b in BALANCES},
    "turns": {f"turns of {n}": Row({"method": "switch", "switch_every": n}) for n in TURNS},
    "grid": {f"α = {a}, β = {b}": Row({"alpha": a, "beta": b}) for a, b in product(ALPHAS, BETAS)},
}
OTHER_MARKS = ("alone", "ahead", "ahead by sampler", "pairs", "bounds", "setting")  # what else has its place in the document
ALL_PAIRS = ("methods",)  # the tables that are measured on every pair; the others on those that have a true picture


def make_tasks(row: Row, pairs: Pairs, seeds: int) -> Iterator[Task]:
    """One task for each pair, with the seeds 0 to ``seeds`` − 1."""
    for content, style in pairs:
        if row.is_exchanged:
            content, style = replace(content, path=style.path), replace(style, path=content.path)
        batch = 1 if row.settings.get("method") == "random" else MAX_BATCH
        yield Task(row.key, row.settings, content, style, tuple(range(seeds)), batch)


def measure_tables(
    tables: Mapping[str, Rows],
    pairs: Mapping[str, Pairs],
    seeds: int,
    workers: Mapping[str | None, Workers],
    scored: dict[tuple[str, str, str], list[ScoredImage]],
    save: Callable[[Sequence[ScoredImage]], None] = lambda images: None,
) -> dict[str, list[ScoredImage]]:
    """The scored images of each table's rows.  Rows that draw the same images are drawn once.

    Args: pairs: by table.  workers: by sampler.  scored: the images already scored, by the row's key, content and style;
    new ones are added.  save: called with the new images of each task.
    """
    different = {
        make_key(task): (row.sampler, task)
        for table, rows in tables.items() for row in rows.values() for task in make_tasks(row, pairs[table], seeds)
    }  # fmt: skip
    for sampler, work in workers.items():
        wanted = [task for its, task in different.values() if its == sampler]
        todo = [task for task in wanted if len(scored.get(make_key(task), ())) != seeds]
        began = time.monotonic()
        for number, (task, images) in enumerate(zip(todo, work(todo)), 1):
            scored[make_key(task)] = images
            save(images)
            if number == len(todo) or todo[number].method != task.method:
                done = f"{number}/{len(todo)}, {time.monotonic() - began:.0f} s"
                print(f"{task.method} ({done})", file=sys.stderr, flush=True)
    return {
        table: [
            replace(image, method=name) for name, row in rows.items() for task in make_tasks(row, pairs[table], seeds)
            for image in scored[make_key(task)]
        ]
        for table, rows in tables.items()
    }  # fmt: skip


def make_key(task: Task) -> tuple[str, str, str]:
    """(row's key, content, style)"""
    return task.method, task.content.name, task.style.name


def format_texts(name: str, images: Sequence[ScoredImage]) -> dict[str, str]:
    """The texts that are made from a table's images, by the name of the mark where each belongs."""
    if name == "grid":
        return {name: format_grid(images)}
    if name == "methods":
        behind = {image.method: "direct" for image in images if image.method != "direct"}
        pairs = format_pairs([i for i in images if i.method in SHORT])
        return {name: format_markdown(make_table(images)), "ahead": format_lead(images, behind), "pairs": pairs}
    if name == "samplers":
        behind = {f"klora, s: {sampler}": f"direct: {sampler}" for sampler in SAMPLERS}
        return {name: format_markdown(make_table(images)), "ahead by sampler": format_lead(images, behind)}
    return {name: format_markdown(make_table(images))}


def format_lead(images: Sequence[ScoredImage], behind: Mapping[str, str]) -> str:
    """A table of how far a row is ahead of another (`behind`: row → other row), seed by seed, in the column `both`."""
    scores = {(i.method, i.content, i.style, i.seed): i.scores[toy.BOTH] for i in images}
    lines = ["| method | ahead by | pairs ahead |", "|---|---|---|"]
    for name, other in behind.items():
        leads = [
            replace(i, scores={"ahead": i.scores[toy.BOTH] - scores[other, i.content, i.style, i.seed]})
            for i in images if i.method == name
        ]  # fmt: skip
        pairs: dict[tuple[str, str], float] = {}
        for i in leads:
            pairs[i.content, i.style] = pairs.get((i.content, i.style), 0) + i.scores["ahead"]
        won = sum(total > 0 for total in pairs.values())
        lines.append(f"| {name} | {format_percent(measure_cell(leads, 'ahead'))} | {won} of {len(pairs)} |")
    return "\n".join(lines) + "\n"


def format_grid(images: Sequence[ScoredImage]) -> str:
    """A table of the column `both`: a column for each α, a row for each β, as in the paper's appendix."""
    lines = ["| β \\ α | " + " | ".join(map(str, ALPHAS)) + " |", "|---" * (len(ALPHAS) + 1) + "|"]
    rows = make_table(images)
    for b in BETAS:
        lines.append(f"| {b} | " + " | ".join(format_percent(rows[f"α = {a}, β = {b}"][toy.BOTH]) for a in ALPHAS) + " |")
    return "\n".join(lines) + "\n"


def format_pairs(images: Sequence[ScoredImage]) -> str:
    """A table of the column `both`: a row for each pair, a column for each method."""
    methods = [*dict.fromkeys(image.method for image in images)]
    lines = ["| content | style | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for content, style in dict.fromkeys((image.content, image.style) for image in images):
        groups = [[i for i in images if (i.content, i.style, i.method) == (content, style, m)] for m in methods]
        cells = [format_percent(measure_cell(group, toy.BOTH)) for group in groups]
        lines.append(f"| {content} | {style} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fill_mark(text: str, name: str, new: str) -> str:
    """`text` with `new` between the marks called `name`.  Raises SettingsError if the marks are missing."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not all(mark in text for mark in marks):
        where = f"between {marks[0]} and {marks[1]}"
        raise SettingsError(f"has no place for the table {name!r}, which belongs {where}", "document")
    before, rest = text.split(marks[0], 1)
    return f"{before}{marks[0]}\n{new}{marks[1]}{rest.split(marks[1], 1)[1]}"


def fill_document(
    text: str, drawn: Mapping[str, Sequence[ScoredImage]], others: Mapping[str, Sequence[ScoredImage]], setting: str
) -> str:
    """The document with all its tables, and `setting`, the sentence on how they were measured."""
    for name, images in others.items():
        text = fill_mark(text, name, format_markdown(make_table(images)))
    for name, images in drawn.items():
        for mark, new in format_texts(name, images).items():
            text = fill_mark(text, mark, new)
    return fill_mark(text, "setting", setting)


def check_marks(text: str) -> None:
    """Raise SettingsError if the document has no place for a table, before the measurement, which takes long."""
    for name in (*TABLES, *OTHER_MARKS):
        fill_mark(text, name, "")
