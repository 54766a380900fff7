"""``evaluate``: the paper's table of methods × pairs × seeds, with scores from reference pictures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..drawing import pipelines
from ..errors import SettingsError
from ..evaluation.metrics import ClipAndDino, Metric, read_pictures
from ..evaluation.run import Lora, Sampling, Task, Worker, Workers, make_local_workers, make_ray_workers
from ..evaluation.table import ScoredImage, format_csv, format_markdown, make_table
from ..lora.peft import name_file
from ..rule.cache import Library
from ..settings import METHODS, quote_value
from . import files
from .options import add_settings, read_given_settings, read_number, read_size, read_whole_number
from .render import DRAW_SETTINGS, add_sampling, read_methods

ROWS = tuple(method for method in METHODS if method != "blora")  # which is for SDXL alone
JUDGED_SIZE = (128, 128)  # the toy's judge can only score images of this size


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate", help="score methods × pairs × seeds by CLIP and DINO (the toy model: by its judge), as a table"
    )
    command.set_defaults(run=run_evaluate)
    of = "a .safetensors file or a PEFT folder; with =WORDS, its trigger words in the prompt"
    command.add_argument("--content", nargs="+", default=[], metavar="FILE[=WORDS]", help=f"the content LoRAs, each {of}")
    command.add_argument("--style", nargs="+", default=[], metavar="FILE[=WORDS]", help=f"the style LoRAs, each {of}")
    command.add_argument("--prompt", help="the prompt, with {content} and {style} where the words of the two belong")
    command.add_argument("--methods", nargs="+", metavar="METHOD", help=f"the rows (default: {' '.join(ROWS)})")
    command.add_argument("--count", default="5", help="number of seeds for each pair, counting up (default: %(default)s)")
    command.add_argument("--batch", default="1", help="number of seeds drawn at once (default: %(default)s)")
    command.add_argument("--references", metavar="DIR", help="a folder that has a folder of pictures for each LoRA, named "
                         "as its file")  # fmt: skip
    command.add_argument("--clip", help="a transformers CLIP model: a folder, or a name in the local cache")
    command.add_argument("--dino", help="a transformers DINO model, likewise")
    command.add_argument(
        "--ray", metavar="ADDRESS", help="spread the work over this Ray cluster (auto: the one that is running)"
    )
    add_sampling(command)
    add_settings(command, DRAW_SETTINGS)


def run_evaluate(args: argparse.Namespace) -> None:
    sampling, tasks = read_sampling(args), list(read_tasks(args))
    metric = read_metric(args)
    model = args.model if args.model == "toy" else os.path.abspath(args.model)
    make = partial(make_worker, model, args.device, args.dtype, args.sampler, metric, sampling)
    with files.open_folder(args.out) as out:
        workers: Workers = make_ray_workers(make, args.ray) if args.ray else make_local_workers(make)
        scored: list[ScoredImage] = []
        try:
            for number, images in enumerate(workers(tasks), 1):
                scored += images
                task = tasks[number - 1]
                done = f"{number}/{len(tasks)} {task.method}: {task.content.name} × {task.style.name}"
                print(done, file=sys.stderr, flush=True)
        except BaseException:  # an interruption too: what is scored is not lost
            if scored:
                files.write_file(out / "evaluation.csv", format_csv(scored).encode())
            raise
        text = format_markdown(make_table(scored))
        try:
            files.write_file(out / "evaluation.md", text.encode())
            files.write_file(out / "evaluation.csv", format_csv(scored).encode())
        finally:  # a full disk leaves the table here, and a closed pipe in the files
            print(text, end="", flush=True)


def make_worker(
    model: str, device: str | None, dtype: str | None, sampler: str | None, metric: Any, sampling: Sampling
) -> Worker:
    """Make a worker.  This runs on the worker's machine, which may have a GPU even if this machine has none."""

    def load() -> Any:
        pipe = pipelines.load_pipeline(model, device, dtype)
        pipelines.use_sampler(pipe, sampler)
        return pipe

    return Worker(load, partial(metric, torch.device(pipelines.choose_device(device))), sampling)


def read_sampling(args: argparse.Namespace) -> Sampling:
    toy = pipelines.import_toy() if args.model == "toy" else None
    if args.prompt is None and toy is None:
        raise SettingsError("is needed, with {content} and {style} where the words of the two belong", "prompt")
    return Sampling(
        args.prompt if toy is None or args.prompt is not None else toy.write_prompt("{content}"),
        args.negative_prompt,
        read_whole_number(getattr(toy, "STEPS", 30) if args.steps is None else args.steps, "steps", 1, 1000),
        read_number(getattr(toy, "GUIDANCE", None) if args.cfg is None else args.cfg, "cfg", 0, 100),
        read_size(args.size),
    )


def read_tasks(args: argparse.Namespace) -> Iterator[Task]:
    """A task for each method and pair.  Every file is read here, so that a bad one is refused before a model is loaded."""
    settings = read_given_settings(args, DRAW_SETTINGS)
    first = read_whole_number(args.seed, "seed", 0, 2**63 - 100001)
    seeds = tuple(range(first, first + read_whole_number(args.count, "count", 1, 100000)))
    batch = read_whole_number(args.batch, "batch", 1, 1000)
    contents, styles = read_loras(args, "content"), read_loras(args, "style")
    library = Library()
    for content in contents:
        for style in styles:
            library.pair(*library.read_both((content.path, content.name), (style.path, style.name)))
    for method in read_methods(args.methods or list(ROWS)):
        for content in contents:
            for style in styles:
                yield Task(method, {**settings, "method": method}, content, style, seeds, 1 if method == "random" else batch)


def read_loras(args: argparse.Namespace, role: str) -> list[Lora]:
    """The LoRAs given for a role; with the toy model, all of this role if none is given.  Raises SettingsError."""
    given = getattr(args, role)
    if not given and args.model == "toy":
        given = [name for name, its in pipelines.import_toy().list_loras().items() if its == role]
    if not given:
        raise SettingsError("no LoRA is given", role)
    loras = []
    for text in given:
        name, words = split_words(text)
        path = pipelines.find_lora(name, args.model, role).absolute()
        loras.append(Lora(name_file(path), path, words or name_file(path)))
    if len({lora.name for lora in loras}) < len(loras):
        raise SettingsError("two of the files have the same name, and so would their rows and pictures", role)
    return loras


def split_words(text: str) -> tuple[str, str]:
    """(file, words) of `FILE=WORDS`.  The file's name may contain = too."""
    name, end, words = text.partition(".safetensors=")
    if end or text.endswith(".safetensors"):
        return name + end.removesuffix("="), words
    name, _, words = text.partition("=")
    return name, words


def read_metric(args: argparse.Namespace) -> Any:
    """A function device -> Metric.  What it needs is checked here, before a model is loaded."""
    given = {name: getattr(args, name) for name in ("references", "clip", "dino")}
    loras = {role: read_loras(args, role) for role in ("content", "style")}
    if args.model == "toy" and not any(given.values()):
        check_judge(loras, read_size(args.size))
        return make_judge
    if lacking := [name for name, value in given.items() if not value]:
        raise SettingsError("is needed to score images", lacking[0])
    references = Path(args.references).absolute()
    for lora in (*loras["content"], *loras["style"]):
        read_pictures(references / lora.name)
    return partial(ClipAndDino, args.clip, args.dino, references)


def check_judge(loras: Mapping[str, Sequence[Lora]], size: tuple[int, int] | None) -> None:
    """Raise SettingsError if the toy's judge cannot score images of these LoRAs or of this size."""
    for role, given in loras.items():
        names = [name for name, its in pipelines.import_toy().list_loras().items() if its == role]
        if others := [lora.name for lora in given if lora.name not in names]:
            raise SettingsError(
                f"the toy's judge knows {', '.join(names)}, not {quote_value(' '.join(others))}: give --references, --clip "
                "and --dino for others", role
            )  # fmt: skip
    if size not in (None, JUDGED_SIZE):
        raise SettingsError(f"the toy's judge looks at images of {'x'.join(map(str, JUDGED_SIZE))} only", "size")


def make_judge(device: torch.device) -> Metric:
    from ..evaluation.toy import JudgeScores

    return JudgeScores()
