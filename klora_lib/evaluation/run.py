"""Draws and scores images of methods × pairs × seeds, in this process or, with Ray, on many machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

import torch

from ..diffusers import klora
from ..drawing.draw import draw_images
from ..drawing.pipelines import make_arguments
from ..errors import HostError, KLoraError, SettingsError, quote_first_line
from ..rule.cache import Library
from .metrics import Metric
from .table import ScoredImage


@dataclass(frozen=True)
class Lora:
    """A LoRA file.

    name: in the table, and of its folder of reference pictures.  phrase: its trigger words in the prompt.
    """

    name: str
    path: Path
    phrase: str


@dataclass(frozen=True)
class Task:
    """The images of one table row for one pair: one image for each seed, ``batch`` images at a time.

    A batch has one plan, so the method ``random`` needs batches of one image.
    """

    method: str  # the row's name
    settings: Mapping[str, Any]
    content: Lora
    style: Lora
    seeds: tuple[int, ...]
    batch: int = 1


# what may be in braces in a prompt: (name, format, conversion); all None: text without braces
FIELDS = {(None, None, None), ("content", "", None), ("style", "", None)}


@dataclass(frozen=True)
class Sampling:
    """What all images have in common.  prompt: {content} and {style} in it are replaced by the LoRAs' phrases.

    Raises SettingsError if the prompt has anything else in braces.
    """

    prompt: str
    negative: str = ""
    steps: int = 30
    cfg: float | None = None
    size: tuple[int, int] | None = None  # width, height; None: the model's own

    def __post_init__(self) -> None:
        try:
            fields = {part[1:] for part in Formatter().parse(self.prompt)}
        except ValueError:  # a single brace
            fields = {("", "", None)}
        if not fields <= FIELDS:
            raise SettingsError(
                f"may have {{content}} and {{style}} in braces and nothing else, not {self.prompt!r}", "prompt"
            )

    def fill_prompt(self, task: Task) -> str:
        return self.prompt.format(content=task.content.phrase, style=task.style.phrase)


class Worker:
    """A pipeline and a metric, which do one task after another."""

    def __init__(self, load: Callable[[], Any], metric: Callable[[], Metric], sampling: Sampling):
        self.pipe = load()
        self.pipe.set_progress_bar_config(disable=True)
        self.metric = metric()
        self.sampling = sampling
        self.library = Library()

    def run(self, task: Task) -> list[ScoredImage]:
        """The scored images of a task, one for each seed."""
        images = [image for seeds in split_seeds(task) for image in self.draw_images(task, seeds)]
        scores = self.metric.score(images, task.content.name, task.style.name)
        return [
            ScoredImage(task.method, task.content.name, task.style.name, seed, {c: float(v[i]) for c, v in scores.items()})
            for i, seed in enumerate(task.seeds)
        ]

    def draw_images(self, task: Task, seeds: Sequence[int], sampling: Sampling | None = None) -> list[Any]:
        """One batch of images, one for each seed.  The noise is from the CPU's generator: the same on every device.

        sampling: None for the worker's own.
        """
        s = sampling or self.sampling
        given = make_arguments(s.fill_prompt(task), s.negative, s.steps, s.cfg, s.size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        block = klora(
            self.pipe, task.content.path, task.style.path, seed=seeds[0], library=self.library, **task.settings
        )
        return draw_images(self.pipe, block, **given, num_images_per_prompt=len(seeds), generator=generators)[0]


def split_seeds(task: Task) -> Iterator[tuple[int, ...]]:
    """The task's seeds in batches."""
    for first in range(0, len(task.seeds), task.batch):
        yield task.seeds[first : first + task.batch]


class Workers(Protocol):
    def __call__(self, tasks: Sequence[Task]) -> Iterable[list[ScoredImage]]: ...


def make_local_workers(make: Callable[[], Worker]) -> Workers:
    """Workers that run all tasks one after another in this process."""

    def run_tasks(tasks: Sequence[Task]) -> Iterator[list[ScoredImage]]:
        worker = make()
        yield from (worker.run(task) for task in tasks)

    return run_tasks


def make_ray_workers(make: Callable[[], Worker], address: str) -> Workers:
    """Workers that run the tasks on a Ray cluster, one worker per GPU, or per CPU if there is no GPU.

    Results come in the order of the tasks.  All files must have the same paths on every machine.
    Raises SettingsError if Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise SettingsError("Ray is not installed; pip install ray", "ray") from None
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise SettingsError(f"no Ray cluster answers at {address!r} ({quote_first_line(e)})", "ray") from None

    class Remote:
        """A worker in another process.  It returns refusals as values, because Ray would change an exception's type."""

        def __init__(self) -> None:
            self.worker: Worker | None = None

        def run(self, task: Task) -> list[ScoredImage] | KLoraError:
            try:
                self.worker = self.worker or make()
                return self.worker.run(task)
            except KLoraError as e:
                return e

    def run_tasks(tasks: Sequence[Task]) -> Iterator[list[ScoredImage]]:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        remote = ray.remote(num_gpus=1)(Remote) if gpus else ray.remote(num_cpus=1)(Remote)
        count = max(1, min(len(tasks), gpus or int(resources.get("CPU", 1))))
        pool = ActorPool([remote.remote() for _ in range(count)])
        try:
            for answer in pool.map(lambda actor, task: actor.run.remote(task), list(tasks)):
                if isinstance(answer, KLoraError):
                    raise answer
                yield answer
        except ray.exceptions.RayError as e:
            raise HostError(f"a worker of the Ray cluster failed: {quote_first_line(e)}") from e

    return run_tasks
