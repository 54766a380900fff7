"""The evaluation on the toy world: `python -m klora_lib.evaluation.report docs/evaluation.md` measures its tables anew.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; what is written around them stays.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .. import toy as world
from ..cli.files import write
from ..cli.options import Parser, whole
from ..errors import KLoraError, SettingsError
from ..settings import read_settings
from . import toy
from .run import Lora, Task, Workers, here, on_ray
from .table import Scored, as_csv, cell, markdown, percent, table

SEEDS = 20
ALPHAS, BETAS = (1.0, 1.5, 2.0), (0.25, 0.5, 0.75)  # the paper's grid
KS: tuple[int | str, ...] = (4, 16, "auto", 256, 1024, 2**40)  # the last: every element


@dataclass(frozen=True)
class Row:
    """settings: what is not a default.  exchanged: the content file where the style belongs, and the reverse.
    sampler: one of the command line's, None for the toy's own."""

    settings: Mapping[str, Any]
    exchanged: bool = False
    sampler: str | None = None

    def key(self) -> str:
        """The same for rows that draw the same images."""
        return repr((sorted(vars(read_settings(dict(self.settings))).items()), self.exchanged, self.sampler))


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
SAMPLERS = {"Euler Karras": None, "Euler": "Euler", "DPM++ 2M Karras": "DPM++ 2M Karras", "Euler a": "Euler a"}
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
        batch = 1 if row.settings.get("method") == "random" else seeds
        yield Task(row.key(), row.settings, content, style, tuple(range(seeds)), batch)


def measured(
    tables: Mapping[str, Rows], pairs: Sequence[tuple[Lora, Lora]], seeds: int, workers: Mapping[str | None, Workers]
) -> dict[str, list[Scored]]:
    """The images of each table's rows; rows that draw the same are drawn once.  workers: by sampler."""
    different = {row.key(): (name, row) for rows in tables.values() for name, row in rows.items()}
    known: dict[str, list[Scored]] = {key: [] for key in different}
    for sampler, work in workers.items():
        own = {key: named for key, named in different.items() if named[1].sampler == sampler}
        todo = [task for _, row in own.values() for task in tasks(row, pairs, seeds)]
        began = time.monotonic()
        for number, images in enumerate(work(todo), 1):
            known[images[0].method] += images
            if number % len(pairs) == 0:
                told = f"{own[images[0].method][0]} ({number}/{len(todo)}, {time.monotonic() - began:.0f} s)"
                print(told, file=sys.stderr, flush=True)
    return {
        table: [replace(image, method=name) for name, row in rows.items() for image in known[row.key()]]
        for table, rows in tables.items()
    }


def written(name: str, images: Sequence[Scored]) -> dict[str, str]:
    """The text at each mark that a table's images fill."""
    if name == "grid":
        return {name: grid_table(images)}
    if name == "methods":
        return {name: markdown(table(images)), "pairs": pair_table([i for i in images if i.method in SHORT[:4]])}
    return {name: markdown(table(images))}


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
        raise SettingsError(f"has no place for the table {name!r}, which belongs between {marks[0]} and {marks[1]}", "document")
    before, rest = text.split(marks[0], 1)
    return f"{before}{marks[0]}\n{new}{marks[1]}{rest.split(marks[1], 1)[1]}"


def report(document: Path, seeds: int, ray: str | None) -> list[Scored]:
    """Measure and rewrite the document's tables; every image's scores."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"{str(document)!r} cannot be read ({e})", "document") from None
    for name in (*TABLES, "pairs", "setting"):
        placed(text, name, "")  # before an hour is spent for nothing
    samplers = dict.fromkeys(row.sampler for rows in TABLES.values() for row in rows.values())
    make = {sampler: partial(toy.worker, sampler) for sampler in samplers}
    workers = {sampler: on_ray(made, ray) if ray else here(made) for sampler, made in make.items()}
    pairs, began = toy.pairs(), time.monotonic()
    drawn = measured(TABLES, pairs, seeds, workers)
    for name, images in drawn.items():
        for mark, new in written(name, images).items():
            text = placed(text, mark, new)
    setting = (
        f"{len(pairs)} pairs × {seeds} seeds a row, {world.STEPS} steps, guidance {world.GUIDANCE:g}; "
        f"torch {torch.__version__}, {(time.monotonic() - began) / 60:.0f} minutes on {os.cpu_count()} cores.\n"
    )
    write(document, placed(text, "setting", setting).encode())
    return [replace(i, method=f"{name}: {i.method}") for name, images in drawn.items() for i in images]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after one line on stderr."""
    parser = Parser(prog="python -m klora_lib.evaluation.report", description=__doc__)
    parser.add_argument("document", type=Path, help="the Markdown file whose tables are measured anew")
    parser.add_argument("--seeds", default=str(SEEDS), help="images a pair (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="where to write every image's scores")
    parser.add_argument("--ray", metavar="ADDRESS", help="spread the work over this Ray cluster")
    try:
        args = parser.parse_args(argv)
        images = report(args.document, whole(args.seeds, "seeds", 1, 10000), args.ray)
        if args.csv:
            write(args.csv, as_csv(images).encode())
    except KLoraError as e:
        print(f"klora: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
