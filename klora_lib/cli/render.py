"""``generate`` writes images, their settings and maps.  ``compare`` writes one grid of methods × seeds."""

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
from ..drawing.draw import draw_images
from ..drawing.grid import draw_grid
from ..errors import SettingsError
from ..lora.peft import name_file
from ..map import draw_plan
from ..map.told import tell_plan
from ..rule.cache import Library
from ..settings import FIELDS, METHODS, quote_value
from . import files
from .options import add_settings, read_given_settings, read_number, read_size, read_whole_number

NOT_HERE = ("enabled", "content", "style", "show_map", "hires", "hires_balance")  # set otherwise, or of a WebUI only
GENERATE_SETTINGS = tuple(f.name for f in FIELDS if f.name not in NOT_HERE)
DRAW_SETTINGS = tuple(name for name in GENERATE_SETTINGS if name != "method")  # for commands with a list of methods
LEAST = 256  # pixels: narrower pictures are enlarged in a grid, so that one can see what they show
COMPARED_METHODS = ("content", "style", "direct", "switch", "klora")


def add_commands(commands: Any) -> None:
    generate = commands.add_parser("generate", help="draw images, and write the settings and the selection map beside each")
    generate.set_defaults(run=run_generate, count="1", settings=GENERATE_SETTINGS)
    compare = commands.add_parser("compare", help="draw one labelled grid of methods × seeds")
    compare.set_defaults(run=run_compare, count="3", settings=DRAW_SETTINGS)
    compare.add_argument("--methods", nargs="+", metavar="METHOD", help=f"the rows (default: {' '.join(COMPARED_METHODS)})")
    compare.add_argument("--across", action="store_true", help="methods across and seeds down, not the other way")
    for command, settings in ((generate, GENERATE_SETTINGS), (compare, DRAW_SETTINGS)):
        of = "a .safetensors file or a PEFT folder (or one of the toy's)"
        command.add_argument("--content", required=True, help=f"the content LoRA, {of}")
        command.add_argument("--style", required=True, help="the style LoRA, likewise")
        command.add_argument("--prompt", help="the prompt, with the trigger words of both LoRAs (optional with toy)")
        add_sampling(command)
        command.add_argument("--count", help="how many seeds, counting up (default: %(default)s)")
        add_settings(command, settings)


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Add the options that all commands that draw have: the model and how it is sampled."""
    command.add_argument("--model", required=True, help="a diffusers folder, a .safetensors checkpoint, or toy")
    command.add_argument("--negative-prompt", default="", help="what the image must not show (default: nothing)")
    command.add_argument("--steps", help=f"sampler steps (default: 30; the toy's: {toy.STEPS})")
    command.add_argument("--cfg", help=f"guidance scale (default: the pipeline's; the toy's: {toy.GUIDANCE:g})")
    command.add_argument("--size", metavar="WxH", help="size of the image (default: the model's)")
    command.add_argument("--seed", default="0", help="seed of the first image (default: %(default)s)")
    command.add_argument("--sampler", help=f"one of {', '.join(pipelines.SAMPLERS)} (default: the model's own)")
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    command.add_argument("--dtype", choices=tuple(pipelines.DTYPES), help="type of the weights (default: fp16, on the CPU "
                         "fp32; not with toy)")  # fmt: skip
    command.add_argument("--out", required=True, metavar="DIR", help="the folder to write to; it is made if it is missing")


@dataclass(frozen=True)
class ImageRequest:
    """The values of the options of ``generate`` and ``compare``."""

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
        return "_".join(name_file(path) for path in self.paths)


def read_image_request(args: argparse.Namespace) -> ImageRequest:
    """Read the options.  Loads and changes nothing.  Raises SettingsError."""
    defaults = pipelines.import_toy() if args.model == "toy" else None
    steps = getattr(defaults, "STEPS", 30) if args.steps is None else args.steps
    cfg = getattr(defaults, "GUIDANCE", None) if args.cfg is None else args.cfg
    first = read_whole_number(args.seed, "seed", 0, 2**63 - 1001)
    content, style = (pipelines.find_lora(getattr(args, role), args.model, role) for role in ("content", "style"))
    if args.prompt is None and defaults is None:
        raise SettingsError("is needed, with the trigger words of both LoRAs", "prompt")
    return ImageRequest(
        args.model,
        (content, style),
        args.prompt if defaults is None or args.prompt is not None else defaults.write_prompt(content.stem),
        args.negative_prompt,
        read_whole_number(steps, "steps", 1, 1000),
        read_number(cfg, "cfg", 0, 100),
        read_size(args.size),
        range(first, first + read_whole_number(args.count, "count", 1, 1000)),
        read_given_settings(args, args.settings),
    )


class ImageMaker:
    """A loaded pipeline that draws the images of a request."""

    def __init__(self, args: argparse.Namespace, request: ImageRequest):
        self.library = Library()
        self.library.read_both(*((path, name_file(path)) for path in request.paths))  # bad files are refused first
        self.request = request
        self.pipe = pipelines.load_pipeline(request.model, args.device, args.dtype)
        self.sampler = pipelines.use_sampler(self.pipe, args.sampler)

    def draw_image(self, seed: int, settings: dict[str, Any], bar: tqdm, label: str = "") -> tuple[Image.Image, Run]:
        """Draw one image.  Returns it with the Run of its klora block."""
        request = self.request

        def show_call(call: int, calls: int) -> None:
            bar.set_postfix_str(f"{label}seed {seed}, call {call} of {calls}")

        given = pipelines.make_arguments(request.prompt, request.negative, request.steps, request.cfg, request.size)
        block = klora(self.pipe, *request.paths, seed=seed, callback=show_call, library=self.library, **settings)
        images, run = draw_images(self.pipe, block, **given, generator=torch.Generator().manual_seed(seed))
        bar.update()
        return images[0], run

    def make_infotext(self, image: Image.Image, seed: int, run: Run) -> str:
        """The infotext, as a WebUI writes it."""
        request = self.request
        facts: dict[str, Any] = {"Steps": request.steps, "Sampler": self.sampler}
        facts |= {"CFG scale": request.cfg} if request.cfg is not None else {}
        facts |= {"Seed": seed, "Size": f"{image.width}x{image.height}", "Model": Path(request.model).stem}
        lines = [request.prompt, f"Negative prompt: {request.negative}"] if request.negative else [request.prompt]
        return "\n".join([*lines, f"{infotext.join(facts)}, {run.infotext()}"])


def make_progress_bar(images: int) -> tqdm:
    """A progress bar over images on a terminal; it shows nothing if stderr is not a terminal."""
    return tqdm(total=images, unit="image", leave=False, disable=None, file=sys.stderr)


def run_generate(args: argparse.Namespace) -> None:
    request = read_image_request(args)
    with files.open_folder(args.out) as out:
        maker = ImageMaker(args, request)
        with make_progress_bar(len(request.seeds)) as bar:
            for seed in request.seeds:
                image, run = maker.draw_image(seed, request.settings, bar)
                text = maker.make_infotext(image, seed, run)
                stem = out / f"{request.name}_{run.settings.method}_{seed}"
                files.write_file(f"{stem}.png", files.encode_png(image, text))
                files.write_file(f"{stem}.txt", f"{text}\n".encode())
                files.write_file(f"{stem}_map.png", files.encode_png(draw_plan(run.table(), *tell_plan(run.passes[0].plan))))
        print_notes(run)
        print(f"{len(request.seeds)} × image, settings and map: {stem.parent}")


def run_compare(args: argparse.Namespace) -> None:
    request, methods = read_image_request(args), read_methods(args.methods)
    with files.open_folder(args.out) as out:
        maker = ImageMaker(args, request)
        rows, texts = [], []
        with make_progress_bar(len(request.seeds) * len(methods)) as bar:
            for method in methods:
                row = []
                for seed in request.seeds:
                    image, run = maker.draw_image(seed, {**request.settings, "method": method}, bar, f"{method}, ")
                    row.append(image)
                    texts += [maker.make_infotext(image, seed, run)]
                rows.append(row)
        heads = [f"seed {seed}" for seed in request.seeds]
        if args.across:
            rows, methods, heads = [list(column) for column in zip(*rows)], heads, methods
        grid = draw_grid(rows, methods, heads, LEAST)
        files.write_file(out / f"{request.name}_grid.png", files.encode_png(grid, texts[0]))
        files.write_file(out / f"{request.name}_grid.txt", ("\n\n".join(texts) + "\n").encode())
        print_notes(run)
        print(out / f"{request.name}_grid.png")


def read_methods(given: list[str] | None) -> list[str]:
    """The methods in a list of names, which may contain commas, without repeats.  Raises SettingsError."""
    methods = [word.lower() for each in given or COMPARED_METHODS for word in each.split(",") if word]
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise SettingsError(f"must be some of {', '.join(METHODS)}, not {quote_value(' '.join(unknown))}", "methods")
    return list(dict.fromkeys(methods))


def print_notes(run: Run) -> None:
    for note in run.notes:
        print(f"klora: {note}", file=sys.stderr)
