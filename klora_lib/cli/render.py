"""``generate``: images, their settings and maps.  ``compare``: one grid of methods × seeds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .. import infotext, toy
from ..diffusers import Run, klora
from ..drawing import pipelines
from ..drawing.draw import draw
from ..errors import SettingsError
from ..lora.peft import name_of
from ..map import draw_plan
from ..rule.cache import Library
from ..settings import FIELDS, METHODS, quote_value
from . import files
from .grid import draw_grid
from .options import add_settings, given_settings, read_number, read_size, read_whole_number

SETTINGS = tuple(f.name for f in FIELDS if f.name not in ("enabled", "content", "style", "show_map"))
DRAWN = tuple(name for name in SETTINGS if name != "method")  # where the methods are listed
COMPARED = ("content", "style", "direct", "switch", "klora")


def add_commands(commands: Any) -> None:
    generate = commands.add_parser("generate", help="draw images, and write the settings and the selection map beside each")
    generate.set_defaults(run=run_generate, count="1", settings=SETTINGS)
    compare = commands.add_parser("compare", help="draw one labelled grid of methods × seeds")
    compare.set_defaults(run=run_compare, count="3", settings=DRAWN)
    compare.add_argument("--methods", nargs="+", metavar="METHOD", help=f"the rows (default: {' '.join(COMPARED)})")
    for command, settings in ((generate, SETTINGS), (compare, DRAWN)):
        of = "a .safetensors file or a PEFT folder (or one of the toy's)"
        command.add_argument("--content", required=True, help=f"the content LoRA, {of}")
        command.add_argument("--style", required=True, help="the style LoRA, likewise")
        command.add_argument("--prompt", help="with the trigger words of both LoRAs (the toy model knows its own)")
        add_sampling(command)
        command.add_argument("--count", help="how many seeds, counting up (default: %(default)s)")
        add_settings(command, settings)


def add_sampling(command: argparse.ArgumentParser) -> None:
    """What every command that draws is told: the model and how it is sampled."""
    command.add_argument("--model", required=True, help="a diffusers folder, a .safetensors checkpoint, or toy")
    command.add_argument("--negative-prompt", default="", help="what the image is to be without (default: nothing)")
    command.add_argument("--steps", help=f"sampler steps (default: 30; the toy's: {toy.STEPS})")
    command.add_argument("--cfg", help=f"guidance scale (default: the pipeline's; the toy's: {toy.GUIDANCE:g})")
    command.add_argument("--size", metavar="WxH", help="of the image (default: the model's)")
    command.add_argument("--seed", default="0", help="of the first image (default: %(default)s)")
    command.add_argument("--sampler", help=f"the model's own, or one of {', '.join(pipelines.SAMPLERS)}")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    command.add_argument("--dtype", choices=tuple(pipelines.DTYPES), help="of a model that is not toy")
    command.add_argument("--out", required=True, metavar="DIR", help="where to write; made where it is missing")


@dataclass(frozen=True)
class Task:
    """What was asked for, read: nothing is loaded or changed yet."""

    model: str
    paths: tuple[Path, Path]
    prompt: str
    negative: str
    steps: int
    cfg: float | None
    size: tuple[int, int] | None
    seeds: range
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return "_".join(name_of(path) for path in self.paths)


def read_task(args: argparse.Namespace) -> Task:
    defaults = pipelines.toy() if args.model == "toy" else None
    steps = getattr(defaults, "STEPS", 30) if args.steps is None else args.steps
    cfg = getattr(defaults, "GUIDANCE", None) if args.cfg is None else args.cfg
    first = read_whole_number(args.seed, "seed", 0, 2**63 - 1001)
    content, style = (pipelines.lora_path(getattr(args, role), args.model, role) for role in ("content", "style"))
    if args.prompt is None and defaults is None:
        raise SettingsError("is needed, with the trigger words of both LoRAs", "prompt")
    return Task(
        args.model,
        (content, style),
        args.prompt if defaults is None or args.prompt is not None else defaults.prompt(content.stem, style.stem),
        args.negative_prompt,
        read_whole_number(steps, "steps", 1, 1000),
        read_number(cfg, "cfg", 0, 100),
        read_size(args.size),
        range(first, first + read_whole_number(args.count, "count", 1, 1000)),
        given_settings(args, args.settings),
    )


class Easel:
    """A loaded pipeline, and what is drawn with it."""

    def __init__(self, args: argparse.Namespace, task: Task):
        self.library = Library()
        self.library.read_both(*((path, name_of(path)) for path in task.paths))  # before a model is loaded for nothing
        self.task = task
        self.pipe = pipelines.load(task.model, args.device, args.dtype)
        self.sampler = pipelines.use_sampler(self.pipe, args.sampler)

    def draw(self, seed: int, settings: dict[str, Any], bar: tqdm, label: str = "") -> tuple[Image.Image, Run]:
        """One image, and the block that it was drawn in."""
        task = self.task

        def show(call: int, calls: int) -> None:
            bar.set_postfix_str(f"{label}seed {seed}, call {call} of {calls}")

        given = pipelines.call_arguments(task.prompt, task.negative, task.steps, task.cfg, task.size)
        block = klora(self.pipe, *task.paths, seed=seed, callback=show, library=self.library, **settings)
        images, run = draw(self.pipe, block, **given, generator=torch.Generator().manual_seed(seed))
        bar.update()
        return images[0], run

    def parameters(self, image: Image.Image, seed: int, run: Run) -> str:
        """The infotext, as a WebUI writes it."""
        task = self.task
        facts: dict[str, Any] = {"Steps": task.steps, "Sampler": self.sampler}
        facts |= {"CFG scale": task.cfg} if task.cfg is not None else {}
        facts |= {"Seed": seed, "Size": f"{image.width}x{image.height}", "Model": Path(task.model).stem}
        lines = [task.prompt, f"Negative prompt: {task.negative}"] if task.negative else [task.prompt]
        return "\n".join([*lines, f"{infotext.join(facts)}, {run.infotext()}"])


def show_progress(images: int) -> tqdm:
    """A bar over images on a terminal; nothing in a log."""
    return tqdm(total=images, unit="image", leave=False, disable=None, file=sys.stderr)


def run_generate(args: argparse.Namespace) -> None:
    task = read_task(args)
    with files.open_folder(args.out) as out:
        easel = Easel(args, task)
        with show_progress(len(task.seeds)) as bar:
            for seed in task.seeds:
                image, run = easel.draw(seed, task.settings, bar)
                text = easel.parameters(image, seed, run)
                stem = out / f"{task.name}_{run.settings.method}_{seed}"
                files.write_file(f"{stem}.png", files.encode_png(image, text))
                files.write_file(f"{stem}.txt", f"{text}\n".encode())
                files.write_file(f"{stem}_map.png", files.encode_png(draw_plan(run.table())))
        print_notes(run)
        print(f"{len(task.seeds)} × image, settings and map: {stem.parent}")


def run_compare(args: argparse.Namespace) -> None:
    task, methods = read_task(args), read_methods(args.methods)
    with files.open_folder(args.out) as out:
        easel = Easel(args, task)
        rows, texts = [], []
        with show_progress(len(task.seeds) * len(methods)) as bar:
            for method in methods:
                row = []
                for seed in task.seeds:
                    image, run = easel.draw(seed, {**task.settings, "method": method}, bar, f"{method}, ")
                    row.append(image)
                    texts += [easel.parameters(image, seed, run)]
                rows.append(row)
        grid = draw_grid(rows, methods, [f"seed {seed}" for seed in task.seeds])
        files.write_file(out / f"{task.name}_grid.png", files.encode_png(grid, texts[0]))
        files.write_file(out / f"{task.name}_grid.txt", ("\n\n".join(texts) + "\n").encode())
        print_notes(run)
        print(out / f"{task.name}_grid.png")


def read_methods(given: list[str] | None) -> list[str]:
    methods = [word.lower() for each in given or COMPARED for word in each.split(",") if word]
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise SettingsError(f"must be some of {', '.join(METHODS)}, not {quote_value(' '.join(unknown))}", "methods")
    return list(dict.fromkeys(methods))


def print_notes(run: Run) -> None:
    for note in run.notes:
        print(f"klora: {note}", file=sys.stderr)
