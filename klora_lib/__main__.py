"""Command line: ``python -m klora_lib plan CONTENT STYLE`` shows the choice without any WebUI; ``plot`` draws it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from .core.cache import Library
from .core.plan import Plan, letters, make_plan
from .errors import KLoraError, SettingsError
from .settings import BY_NAME, Settings, read_settings

RULE = ("method", "alpha", "beta", "gamma", "scale", "k", "layers", "switch_every")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.  Returns the exit status: 0, or 2 after one line on stderr."""
    try:
        args = parser().parse_args(argv)
        args.run(args)
    except KLoraError as e:
        print(f"klora: {e}", file=sys.stderr)
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    """argparse, with our own form of complaint: one line."""

    def error(self, message: str) -> Any:
        raise SettingsError(message)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m klora_lib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    plan = commands.add_parser("plan", help="print the layers × steps choice as JSON")
    plan.set_defaults(run=run_plan)
    plan.add_argument("--json", default="-", metavar="FILE", help="where to write, - for standard output (default)")
    plot = commands.add_parser("plot", help="draw the choice as a PNG: content blue, style green")
    plot.set_defaults(run=run_plot)
    plot.add_argument("--out", default="klora-plan.png", metavar="FILE", help="the PNG (default: %(default)s)")
    for command in (plan, plot):
        command.add_argument("content", metavar="CONTENT", help="the content LoRA, a .safetensors file")
        command.add_argument("style", metavar="STYLE", help="the style LoRA, a .safetensors file")
        command.add_argument("--steps", default=30, help="sampler steps (default: %(default)s)")
        command.add_argument("--seed", default=0, help="the image's seed, for the method random (default: %(default)s)")
        for name in RULE:
            command.add_argument(f"--{name.replace('_', '-')}", dest=name, help=BY_NAME[name].accepts)
    return top


def planned(args: argparse.Namespace) -> tuple[Plan, int]:
    """The plan that the arguments ask for, and its steps."""
    settings = given_settings(args)
    steps, seed = whole(args.steps, "steps", 1, 10000), whole(args.seed, "seed", 0, 2**63 - 1)
    library = Library()
    files = []
    for role in ("content", "style"):
        path = getattr(args, role)
        try:
            files.append(library.read(path, os.path.splitext(os.path.basename(path))[0]))
        except KLoraError as e:
            raise e.about(role) from None
    pair = library.pair(*files)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return make_plan(pair, library.score(pair, settings.k, device), settings, steps, seed), steps


def given_settings(args: argparse.Namespace) -> Settings:
    return read_settings({name: getattr(args, name) for name in RULE if getattr(args, name) is not None})


def whole(text: Any, name: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise SettingsError(f"must be a whole number from {least} to {most}, not {text!r}", name)
    return number


def run_plan(args: argparse.Namespace) -> None:
    text = json.dumps(as_json(*planned(args)), indent=1)
    if args.json == "-":
        print(text)
    else:
        write(args.json, text.encode())


def as_json(plan: Plan, steps: int) -> dict[str, Any]:
    """The contract's form: gamma, steps, and per layer its numbers and one letter a step."""
    s, table = plan.facts.scores, plan.table(steps)
    columns = (s.content_topk, s.style_topk, s.content_abs, s.style_abs)
    names = ("content_topk_sum", "style_topk_sum", "content_abs_sum", "style_abs_sum")
    layers = [
        {
            "name": unit.name,
            "content_rank": unit.content.rank if unit.content else 0,
            "style_rank": unit.style.rank if unit.style else 0,
            "k": s.k[i],
            **{name: float(column[i]) for name, column in zip(names, columns)},
            "selection": letters(table[i]),
        }
        for i, unit in enumerate(plan.units)
    ]
    return {"gamma": plan.gamma, "steps": steps, "layers": layers}


def run_plot(args: argparse.Namespace) -> None:
    import io

    from .webui.plot import draw_plan

    buffer = io.BytesIO()
    draw_plan(*planned(args)).save(buffer, "PNG")
    write(args.out, buffer.getvalue())


def write(path: str, data: bytes) -> None:
    """All of ``data`` at ``path``, or nothing there."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError as e:
        if os.path.exists(partial):
            os.remove(partial)
        raise SettingsError(f"{path!r} cannot be written: {e.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
