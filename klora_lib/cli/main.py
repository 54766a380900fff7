"""Command line: ``plan`` and ``plot`` show the choice between two files; ``bake`` saves it as LoRAs; ``generate`` and
``compare`` draw images, ``evaluate`` scores them, ``report`` measures the tables of docs/evaluation.md again,
``sheet`` draws its contact sheet, and ``ui`` serves a web page.

Every error in the arguments is one line on stderr, with exit status 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from . import bake, evaluate, plan, render, report, sheet, ui
from .options import Parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.  Returns the exit status: 0; 2 after an error; 130 if the user stopped it, 141 if the reader did."""

    def run() -> None:
        args = make_parser().parse_args(argv)
        args.run(args)

    return run_command(run)


def make_parser() -> argparse.ArgumentParser:
    top = Parser(prog="klora", description="K-LoRA (arXiv 2502.18461) without a WebUI.")
    top.add_argument("--version", action="version", version=f"klora {__version__}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    plan.add_commands(commands)
    bake.add_commands(commands)
    render.add_commands(commands)
    evaluate.add_commands(commands)
    report.add_commands(commands)
    sheet.add_commands(commands)
    ui.add_commands(commands)
    return top
