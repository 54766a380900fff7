"""``evaluate``: the paper's table, methods × pairs × seeds, scored against reference pictures."""

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
from ..evaluation.metrics import ClipAndDino, Metric, pictures
from ..evaluation.run import Lora, Sampling, Task, Worker, Workers, here, on_ray
from ..evaluation.table import Scored, as_csv, markdown, table
from ..lora.peft import name_of
from ..rule.cache import Library
from ..settings import METHODS, quote_value
from . import files
from .options import add_settings, given_settings, read_number, read_size, read_whole_number
from .render import DRAWN, add_sampling, read_methods

JUDGED = (64, 64)  # the size of an image that the toy's judge can look at


def add_commands(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate", help="score methods × pairs × seeds by CLIP and DINO (the toy model: by its judge), as a table"
    )
    command.set_defaults(run=run_evaluate)
    of = "a .safetensors file or a PEFT folder; with =WORDS, what stands for it in the prompt"
    command.add_argument("--content", nargs="+", default=[], metavar="FILE[=WORDS]", help=f"the content LoRAs, each {of}")
    command.add_argument("--style", nargs="+", default=[], metavar="FILE[=WORDS]", help=f"the style LoRAs, each {of}")
    command.add_argument("--prompt", help="with {content} and {style} where the words of the two belong")
    command.add_argument("--methods", nargs="+", metavar="METHOD", help=f"the rows (default: {' '.join(METHODS)})")
    command.add_argument("--count", default="5", help="seeds a pair, counting up (default: %(default)s)")
    command.add_argument("--batch", default="1", help="seeds drawn at once (default: %(default)s)")
    command.add_argument("--references", metavar="DIR", help="has a folder of pictures for each LoRA, named as its file")
    command.add_argument("--clip", help="a transformers CLIP model: a folder, or a name in the local cache")
    command.add_argument("--dino", help="a transformers DINO model, likewise")
    command.add_argument(
        "--ray", metavar="ADDRESS", help="spread the work over this Ray cluster (auto: the one that is running)"
    )
    add_sampling(command)
    add_settings(command, DRAWN)


def run_evaluate(args: argparse.Namespace) -> None:
    sampling, tasks = read_sampling(args), list(read_tasks(args))
    metric = read_metric(args)
    model = args.model if args.model == "toy" else os.path.abspath(args.model)
    make = partial(make_worker, model, args.device, args.dtype, args.sampler, metric, sampling)
    with files.open_folder(args.out) as out:
        workers: Workers = on_ray(make, args.ray) if args.ray else here(make)
        scored: list[Scored] = []
        for number, images in enumerate(workers(tasks), 1):
            scored += images
            task = tasks[number - 1]
            print(
                f"{number}/{len(tasks)} {task.method}: {task.content.name} × {task.style.name}", file=sys.stderr, flush=True
            )
        text = markdown(table(scored))
        print(text, end="", flush=True)  # before a full disk can lose it
        files.write_file(out / "evaluation.md", text.encode())
        files.write_file(out / "evaluation.csv", as_csv(scored).encode())


def make_worker(
    model: str, device: str | None, dtype: str | None, sampler: str | None, metric: Any, sampling: Sampling
) -> Worker:
    """Runs where the worker is to work, which may have a GPU where this machine has none."""

    def load() -> Any:
        pipe = pipelines.load(model, device, dtype)
        pipelines.use_sampler(pipe, sampler)
        return pipe

    return Worker(load, partial(metric, torch.device(pipelines.chosen(device))), sampling)


def read_sampling(args: argparse.Namespace) -> Sampling:
    toy = pipelines.toy() if args.model == "toy" else None
    if args.prompt is None and toy is None:
        raise SettingsError("is needed, with {content} and {style} where the words of the two belong", "prompt")
    return Sampling(
        args.prompt if toy is None or args.prompt is not None else toy.prompt("{content}", "{style}"),
        args.negative_prompt,
        read_whole_number(getattr(toy, "STEPS", 30) if args.steps is None else args.steps, "steps", 1, 1000),
        read_number(getattr(toy, "GUIDANCE", None) if args.cfg is None else args.cfg, "cfg", 0, 100),
        read_size(args.size),
    )


def read_tasks(args: argparse.Namespace) -> Iterator[Task]:
    """Methods × pairs.  Every file is read once here, before a model is loaded for nothing."""
    settings = given_settings(args, DRAWN)
    first = read_whole_number(args.seed, "seed", 0, 2**63 - 100001)
    seeds = tuple(range(first, first + read_whole_number(args.count, "count", 1, 100000)))
    batch = read_whole_number(args.batch, "batch", 1, 1000)
    contents, styles = read_loras(args, "content"), read_loras(args, "style")
    library = Library()
    for content in contents:
        for style in styles:
            library.pair(*library.read_both((content.path, content.name), (style.path, style.name)))
    for method in read_methods(args.methods or list(METHODS)):
        for content in contents:
            for style in styles:
                yield Task(method, {**settings, "method": method}, content, style, seeds, 1 if method == "random" else batch)


def read_loras(args: argparse.Namespace, role: str) -> list[Lora]:
    given = getattr(args, role)
    if not given and args.model == "toy":
        given = [name for name, its in pipelines.toy().loras().items() if its == role]
    if not given:
        raise SettingsError("no LoRA is given", role)
    loras = []
    for text in given:
        name, words = file_and_words(text)
        path = pipelines.lora_path(name, args.model, role).absolute()
        loras.append(Lora(name_of(path), path, words or name_of(path)))
    if len({lora.name for lora in loras}) < len(loras):
        raise SettingsError("two of the files have the same name, and so would their rows and pictures", role)
    return loras


def file_and_words(text: str) -> tuple[str, str]:
    """`FILE=WORDS`; a file's own name may have = in it, too."""
    name, end, words = text.partition(".safetensors=")
    if end or text.endswith(".safetensors"):
        return name + end.removesuffix("="), words
    name, _, words = text.partition("=")
    return name, words


def read_metric(args: argparse.Namespace) -> Any:
    """device -> Metric.  What it needs is looked for here, before a model is loaded for nothing."""
    given = {name: getattr(args, name) for name in ("references", "clip", "dino")}
    loras = {role: read_loras(args, role) for role in ("content", "style")}
    if args.model == "toy" and not any(given.values()):
        judged(loras, read_size(args.size))
        return judge_scores
    if lacking := [name for name, value in given.items() if not value]:
        raise SettingsError("is needed to score images", lacking[0])
    references = Path(args.references).absolute()
    for lora in (*loras["content"], *loras["style"]):
        pictures(references / lora.name)
    return partial(ClipAndDino, args.clip, args.dino, references)


def judged(loras: Mapping[str, Sequence[Lora]], size: tuple[int, int] | None) -> None:
    """Raises SettingsError where the toy's judge cannot say of an image what is asked for."""
    for role, own in loras.items():
        known = [name for name, its in pipelines.toy().loras().items() if its == role]
        if strange := [lora.name for lora in own if lora.name not in known]:
            raise SettingsError(
                f"the toy's judge knows {', '.join(known)}, not {quote_value(' '.join(strange))}: give --references, --clip "
                "and --dino for others", role
            )  # fmt: skip
    if size not in (None, JUDGED):
        raise SettingsError("the toy's judge looks at images of 64x64 only", "size")


def judge_scores(device: torch.device) -> Metric:
    from ..evaluation.toy import JudgeScores

    return JudgeScores()
