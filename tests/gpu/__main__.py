"""The table: every model, type of weights, engine and way to hold a model, on one device.

``DEVICE=cpu make gpu GPU="--quick"`` tries the program out where there is no GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

from klora_lib import __version__
from klora_lib.errors import KLoraError, quote_first_line

from .models import Model, random_sdxl, the_toy
from .rows import Bench, Row, check, rows

HEAD = {
    "model": "model", "type": "weights", "engine": "engine", "way": "held",
    "content": "content", "style": "style", "klora": "K-LoRA", "allowed": "allowed", "apart": "other images",
    "weights": "weights afterwards", "peak": "peak, MB", "time": "image, s", "switch": "switch, ms (layers)", "": "",
}  # fmt: skip


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="K-LoRA on a GPU: a table in Markdown")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, xpu, mps; cpu tries the program out")
    parser.add_argument("--size", type=int, help="of the SDXL's images in pixels; by default 1024, less on a small card")
    parser.add_argument("--steps", type=int, help="by default 10; 4 where it is to be quick")
    parser.add_argument("--rounds", type=int, default=3, help="timed images of each kind a row")
    parser.add_argument("--backend", default="inductor", help="torch.compile's")
    parser.add_argument("--quick", action="store_true", help="a narrow SDXL, 4 steps, one round, compiled in name only")
    parser.add_argument("--only", default="", help="rows whose first four cells match this regular expression")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    args = parser.parse_args(given)
    args.steps = args.steps or (4 if args.quick else 10)
    if args.quick:
        args.rounds, args.backend = 1, "eager"
    return args


def find_device(name: str) -> torch.device:
    """Raises KLoraError where torch has no such device."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        how = "`make gpu DEVICE=cpu GPU=--quick` tries the program out without one"
        raise KLoraError(f"torch {torch.__version__} finds no device {name!r} ({quote_first_line(e)}); {how}") from None
    return device


def size_for(device: torch.device) -> int:
    """Pixels a side that a denoiser of 5 GB leaves room for, with twice its attention's weights beside it."""
    if device.type != "cuda":
        return 1024
    total = torch.cuda.get_device_properties(device).total_memory / (1 << 30)
    return 1024 if total > 15 else 768 if total > 11 else 512


def name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device} (no GPU: the program was tried out, nothing was measured)" if device.type == "cpu" else str(device)
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory / (1 << 30):.1f} GB, CUDA {torch.version.cuda or torch.version.hip}"


def run_row(row: Row, bench: Bench) -> tuple[dict[str, str], str]:
    """The cells, and the verdict.  A row that fails does not keep the others from being run."""
    try:
        cells, wrong = check(row, bench)
    except Exception as e:  # noqa: BLE001  whatever a device, diffusers or a compiler raises is this row's result
        return {}, f"**{type(e).__name__}: {quote_first_line(e)}**"
    finally:
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()
    return cells, f"**{'; '.join(wrong)}**" if wrong else "ok"


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(args: argparse.Namespace, device: torch.device, models: list[Model], say: Callable[[str], None]) -> int:
    """Every row said as it is done; how many failed, or 1 where none was wanted."""
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, K-LoRA {__version__}"
    say(f"{name_of(device)}; {versions}; {date.today()}")
    shapes = ", ".join(f"{model.name} {model.size}²" for model in models)
    say(f"\n{shapes}; {args.steps} steps; compiled by {args.backend}; times are medians of {args.rounds}\n")
    say(line(HEAD.values()) + "\n" + "|---" * len(HEAD) + "|")
    wanted = [row for row in rows(models) if re.search(args.only, row.title)]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="klora-gpu-") as folder:
        bench = Bench(device, args.steps, args.rounds, args.backend, Path(folder), {})
        for row in wanted:
            cells, verdict = run_row(row, bench)
            named = {"model": row.model.name, "type": row.weights, "engine": row.engine, "way": row.way, "": verdict}
            say(line([{**cells, **named}.get(column, "") for column in HEAD]))
            failed += verdict != "ok"
    say(f"\n{len(wanted) - failed} of {len(wanted)} rows hold")
    return failed if wanted else 1


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    try:
        device = find_device(args.device)
    except KLoraError as e:
        print(e, file=sys.stderr)
        return 2
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    said: list[str] = []

    def say(text: str) -> None:
        print(text, flush=True)
        said.append(text)

    models = [the_toy(), random_sdxl(args.size or size_for(device), args.quick)]
    failed = table(args, device, models, say)
    if args.out:
        args.out.write_text("\n".join(said) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
