"""``sheet``: a picture to judge by eye: the toy's pairs, drawn by several methods, with the true pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..drawing import pipelines
from ..errors import SettingsError
from ..evaluation import toy
from ..evaluation.run import Lora
from ..settings import quote_value
from . import files
from .options import read_whole_number
from .render import read_methods


def add_commands(commands: Any) -> None:
    command = commands.add_parser("sheet", help="draw pairs × methods of the toy model into one JPEG file")
    command.set_defaults(run=run_sheet)
    command.add_argument("out", type=Path, help="the file")
    command.add_argument("--pairs", nargs="+", metavar="CONTENT:STYLE", help="(default: those that have a true picture)")
    command.add_argument("--methods", nargs="+", metavar="METHOD", help=f"(default: {' '.join(toy.SHEET)})")
    command.add_argument("--seed", default="0", help="(default: %(default)s)")
    command.add_argument("--across", action="store_true", help="methods across and pairs down, not the other way")
    command.add_argument("--no-truth", action="store_true", help="without the true pictures")
    command.add_argument("--least", default="0", help="pictures narrower than so many pixels are enlarged")


def run_sheet(args: argparse.Namespace) -> None:
    pipelines.import_toy()
    seed, least = read_whole_number(args.seed, "seed", 0, 2**63 - 1), read_whole_number(args.least, "least", 0, 2048)
    methods = read_methods(args.methods or list(toy.SHEET))
    pairs = [read_pair(text) for text in args.pairs] if args.pairs else toy.list_true_pairs()
    with files.open_folder(str(args.out.parent)):
        sheet = toy.draw_sheet(toy.make_worker(), pairs, methods, seed, args.across, not args.no_truth, least)
        files.write_file(args.out, files.encode_jpeg(sheet))
    print(args.out)


def read_pair(text: str) -> tuple[Lora, Lora]:
    """``content:style``, two of the toy's names.  Raises KLoraError."""
    content, colon, style = text.partition(":")
    if not colon:
        raise SettingsError(f"must be CONTENT:STYLE, not {quote_value(text)}", "pairs")
    return toy.find_lora(content, "content"), toy.find_lora(style, "style")
