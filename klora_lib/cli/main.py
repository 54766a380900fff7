"""Command line: ``plan`` and ``plot`` show the choice between two files; ``generate`` and ``compare`` draw images,
and ``evaluate`` scores them.

Everything wrong with what was asked for is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import KLoraError
from . import evaluate, plan, render, ui
from .options import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.  Returns the exit status: 0, or 2 after one line on stderr."""
    try:
        args = parser().parse_args(argv)
        args.run(args)
    except KLoraError as e:
        print(f"klora: {e}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m klora_lib", description="K-LoRA without a WebUI.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    plan.add_commands(commands)
    render.add_commands(commands)
    evaluate.add_commands(commands)
    ui.add_commands(commands)
    return top
