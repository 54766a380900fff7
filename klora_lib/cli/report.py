"""``report``: measures the tables of docs/evaluation.md again."""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ..drawing import pipelines
from ..errors import SettingsError
from ..evaluation import toy
from ..evaluation.report import ALL_PAIRS, SEEDS, TABLES, check_marks, fill_document, measure_tables
from ..evaluation.run import make_local_workers, make_ray_workers
from ..evaluation.table import ScoredImage, format_csv
from . import files
from .options import read_whole_number


def add_commands(commands: Any) -> None:
    command = commands.add_parser("report", help="measure the tables of an evaluation document again, on the toy model")
    command.set_defaults(run=run_report)
    command.add_argument("document", type=Path, help="a Markdown file with places for the tables, like docs/evaluation.md")
    command.add_argument("--csv", type=Path, required=True, help="the file for every image's scores, written during the run")
    command.add_argument("--resume", action="store_true", help="keep the scores in that file, and measure only the others")
    command.add_argument("--seeds", default=str(SEEDS), help="images for each pair (default: %(default)s)")
    command.add_argument("--ray", metavar="ADDRESS", help="spread the work over this Ray cluster")


def run_report(args: argparse.Namespace) -> None:
    seeds = read_whole_number(args.seeds, "seeds", 1, 10000)
    try:
        text = args.document.read_text(encoding="utf-8")
    except OSError as e:
        raise SettingsError(f"{str(args.document)!r} cannot be read: {e.strerror}", "document") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{str(args.document)!r} is no UTF-8 text", "document") from None
    check_marks(text)
    files.write_file(args.document, text.encode())  # raises now if it cannot be written
    scored = read_scores(args.csv) if args.resume else {}
    model, began = pipelines.import_toy(), time.monotonic()
    every, true = toy.list_pairs(), toy.list_true_pairs()
    pairs = {table: every if table in ALL_PAIRS else true for table in TABLES}
    samplers = dict.fromkeys(row.sampler for rows in TABLES.values() for row in rows.values())
    make = {sampler: partial(toy.make_worker, sampler) for sampler in samplers}
    workers = {
        sampler: make_ray_workers(one, args.ray) if args.ray else make_local_workers(one) for sampler, one in make.items()
    }
    with open_csv(args.csv, args.resume) as file:
        drawn = measure_tables(TABLES, pairs, seeds, workers, scored, lambda images: append_scores(file, images))
    spent = "" if args.resume else f", {(time.monotonic() - began) / 60:.0f} minutes"
    sampled = f"{model.STEPS} steps, guidance {model.GUIDANCE:g}"
    counts = f"{len(every)} pairs in the tables of methods, {len(true)} in all others, × {seeds} seeds"
    setting = f"{counts}; {sampled}; torch {torch.__version__}{spent}.\n"
    worker = toy.make_worker()
    others = {"alone": toy.measure_alone(worker, range(seeds)), "bounds": toy.measure_bounds(worker, range(seeds))}
    files.write_file(args.document, fill_document(text, drawn, others, setting).encode())


def open_csv(path: Path, resume: bool) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a" if resume else "w", encoding="utf-8", newline="", buffering=1)
    except OSError as e:
        raise SettingsError(f"{str(path)!r} cannot be written: {e.strerror}", "csv") from None


def append_scores(file: IO[str], images: Sequence[ScoredImage]) -> None:
    head, _, lines = format_csv(images, toy.COLUMNS).partition("\n")
    try:
        file.write(lines if file.tell() else f"{head}\n{lines}")
    except OSError as e:
        raise SettingsError(f"{file.name!r} cannot be written: {e.strerror}", "csv") from None


def read_scores(path: Path) -> dict[tuple[str, str, str], list[ScoredImage]]:
    """Read what `append_scores` wrote: scored images by the row's key, content and style.  Raises SettingsError."""
    scored: dict[tuple[str, str, str], list[ScoredImage]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                method, content, style, seed = (line.pop(name) for name in ("method", "content", "style", "seed"))
                scores = {column: float(value) for column, value in line.items() if value}
                image = ScoredImage(method, content, style, int(seed), scores)
                scored.setdefault((method, content, style), []).append(image)
    except OSError as e:
        raise SettingsError(f"{str(path)!r} cannot be read: {e.strerror}", "csv") from None
    except (UnicodeDecodeError, KeyError, ValueError, TypeError):
        raise SettingsError(f"{str(path)!r} is no table of scores", "csv") from None
    return scored
