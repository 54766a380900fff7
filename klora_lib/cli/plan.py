"""``plan CONTENT STYLE`` shows the choice between two files; ``plot`` draws it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..engine.memory import MemoryBudget
from ..errors import SettingsError
from ..lora.peft import find_weights, name_file
from ..rule.cache import Library
from ..rule.describe import describe_plan
from ..rule.explain import explain, format_report
from ..rule.pairing import Pair
from ..rule.plan import Plan, make_plan
from ..settings import Settings
from .files import encode_png, write_file
from .options import add_settings, read_given_settings, read_whole_number

RULE = ("method", "alpha", "beta", "gamma", "scale", "k", "layers", "switch_every", "balance", "mu", "density")
KEPT = "KLORA_CACHE"  # in the environment: the folder in which scores are kept; by default nothing is written


def add_commands(commands: Any) -> None:
    plan = commands.add_parser("plan", help="print the layers × steps choice as JSON")
    plan.set_defaults(run=run_plan)
    plan.add_argument("--json", metavar="FILE", help="where to write it, - for standard output (default without --report)")
    plan.add_argument(
        "--report", action="store_true",
        help="explain the pair: how strong and how alike the two are, and what of each acts, by block; in the JSON too",
    )  # fmt: skip
    plot = commands.add_parser("plot", help="draw the choice as a PNG: content blue, style green")
    plot.set_defaults(run=run_plot)
    plot.add_argument("--out", default="klora-plan.png", metavar="FILE", help="the PNG (default: %(default)s)")
    for command in (plan, plot):
        add_pair(command)
        add_settings(command, RULE)
        add_probe(command)


def add_pair(command: argparse.ArgumentParser) -> None:
    """The two files, and the pass that is planned for them."""
    command.add_argument("content", metavar="CONTENT", help="the content LoRA, a .safetensors file or a PEFT folder")
    command.add_argument("style", metavar="STYLE", help="the style LoRA, likewise")
    command.add_argument("--steps", default=30, help="sampler steps (default: %(default)s)")
    command.add_argument("--seed", default=0, help="the image's seed, for the method random (default: %(default)s)")


def add_probe(command: argparse.ArgumentParser) -> None:
    """What measures β; what it draws with is loaded only then."""
    command.add_argument(
        "--probe", metavar="MODEL",
        help="for the method est: measure β, by drawing an image with each LoRA alone on this model (as generate's --model)",
    )  # fmt: skip
    command.add_argument("--dino", metavar="ENCODER", help="what compares the two images: a transformers DINO model")
    command.add_argument(
        "--prompt", nargs="+", metavar="WORDS", help="of the two images: the content's and the style's, or one for both"
    )


class Planned(NamedTuple):
    """What a command's arguments mean.  notes: on what of the files is left out; they are on standard error too."""

    pair: Pair
    plan: Plan
    steps: int
    notes: list[str]


def read_plan(args: argparse.Namespace, names: Sequence[str] = RULE) -> Planned:
    """The plan for the arguments.  ``names``: of the settings among them."""
    settings = Settings(**read_given_settings(args, names))
    steps, seed = read_whole_number(args.steps, "steps", 1, 10000), read_whole_number(args.seed, "seed", 0, 2**63 - 1)
    for name in ("dino", "prompt"):
        if getattr(args, name, None) is not None and args.probe is None:
            raise SettingsError("is for a measurement, which needs --probe as well", name)
    library = Library(kept_in=os.path.expanduser(os.environ.get(KEPT, "")))
    if os.path.realpath(find_weights(args.content)) == os.path.realpath(find_weights(args.style)):
        raise SettingsError(f"must be another LoRA than content, both are {args.content!r}", "style")
    files = library.read_both(*((path, name_file(path)) for path in (args.content, args.style)))
    pair = library.pair(*files)
    notes = [note for file in files for note in file.notes]
    if getattr(args, "probe", None) is not None:
        from . import probe

        settings = replace(settings, beta=probe.measure_beta(args, settings, steps, seed))
        notes.append(f"the style discrepancy of the two is {settings.beta:.4f}, and stands in the place of β")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = library.measure(pair, settings, device, MemoryBudget.on(device, 0).free)
    plan = make_plan(pair, scores, settings, steps, seed)
    notes += plan.notes
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return Planned(pair, plan, steps, notes)


def run_plan(args: argparse.Namespace) -> None:
    _, plan, steps, notes = read_plan(args)
    told = describe_plan(plan, steps, notes)
    if args.probe is not None:
        told["beta"] = plan.facts.beta
    found = explain(plan, steps) if args.report else None
    if found:
        told["report"] = found.as_json()
    text = json.dumps(told, indent=1, allow_nan=False)
    if args.json not in (None, "-"):
        write_file(args.json, text.encode())
    if found and args.json != "-":
        print(format_report(found), end="")
    elif args.json in (None, "-"):
        print(text)


def run_plot(args: argparse.Namespace) -> None:
    from ..map import draw_plan
    from ..map.told import tell_plan

    _, plan, steps, _ = read_plan(args)
    content, style = (name_file(path) for path in (args.content, args.style))
    write_file(args.out, encode_png(draw_plan(plan.table(steps), *tell_plan(plan, content, style))))
