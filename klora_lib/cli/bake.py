"""``bake CONTENT STYLE`` saves what the two do together as an ordinary LoRA, or as one for each part of the steps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..export import save_parts
from ..export.bake import TYPES
from ..export.names import FORMATS
from ..export.save import Wish
from ..export.segments import MOST
from .options import add_settings, read_whole_number
from .plan import RULE, add_pair, read_plan

WEIGHTS = ("content_weight", "style_weight", "content_te_weight", "style_te_weight")


def add_commands(commands: Any) -> None:
    command = commands.add_parser("bake", help="save what two LoRAs do together as one ordinary LoRA")
    command.set_defaults(run=run_bake)
    add_pair(command)
    command.add_argument("--out", required=True, metavar="FILE", help="the LoRA to write, a .safetensors file")
    command.add_argument(
        "--format", choices=FORMATS,
        help="whose names the layers get (default: kohya for UNets, which every WebUI reads, else peft)",
    )  # fmt: skip
    command.add_argument(
        "--segments", metavar="N",
        help=f"write N files (at most {MOST}), each for the choice in the middle of its part of the steps, and print how to "
        "draw with them by step",
    )  # fmt: skip
    command.add_argument(
        "--rank", metavar="N",
        help="the most for a layer whose change has no two factors (LoHa, LoKr, full, the method ties); "
        "default: the sum of both ranks, at most 128",
    )  # fmt: skip
    command.add_argument(
        "--precision", choices=[*TYPES], help="of the numbers (default: the files' own if it rounds nothing, else fp32)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_settings(command, (*RULE, *WEIGHTS))


def run_bake(args: argparse.Namespace) -> None:
    wish = Wish(
        Path(args.out), read_count(args.segments, "segments", MOST), args.format, read_count(args.rank, "rank", 4096),
        args.precision, args.overwrite,
    )  # fmt: skip
    pair, plan, steps, told = read_plan(args, (*RULE, *WEIGHTS))
    saved = save_parts(pair, plan, steps, (args.content, args.style), wish)
    for note in saved.notes:
        if note not in told:
            print(f"note: {note}", file=sys.stderr)
    for path in saved.paths:
        print(f"saved {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(saved.use, end="")


def read_count(text: str | None, name: str, most: int) -> int | None:
    return None if text is None else read_whole_number(text, name, 1, most)
