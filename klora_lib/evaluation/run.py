"""Images of methods × pairs × seeds, scored; here or, with Ray, on many machines."""

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
from ..errors import HostError, KLoraError, SettingsError, first_line
from ..rule.cache import Library
from .metrics import Metric
from .table import Scored


@dataclass(frozen=True)
class Lora:
    """name: in the table, and of its folder of reference pictures.  phrase: the words of the prompt that call for it."""

    name: str
    path: Path
    phrase: str


@dataclass(frozen=True)
class Task:
    """One row of the table on one pair: so many images as there are seeds, made ``batch`` at a time.

    A batch has one plan, so the method ``random`` wants batches of one.
    """

    method: str  # the row's name
    settings: Mapping[str, Any]
    content: Lora
    style: Lora
    seeds: tuple[int, ...]
    batch: int = 1


# what a prompt may have between its words: name, format and conversion; all None: nothing
FIELDS = {(None, None, None), ("content", "", None), ("style", "", None)}


@dataclass(frozen=True)
class Sampling:
    """What all images have in common.  prompt: with {content} and {style} where their phrases belong.

    Raises SettingsError where the prompt has anything else in braces.
    """

    prompt: str
    negative: str = ""
    steps: int = 30
    cfg: float | None = None
    size: tuple[int, int] | None = None  # width, height; None: the model's own

    def __post_init__(self) -> None:
        try:
            fields = {part[1:] for part in Formatter().parse(self.prompt)}
        except ValueError:  # a brace alone
            fields = {("", "", None)}
        if not fields <= FIELDS:
            raise SettingsError(
                f"may have {{content}} and {{style}} in braces and nothing else, not {self.prompt!r}", "prompt"
            )

    def text(self, task: Task) -> str:
        return self.prompt.format(content=task.content.phrase, style=task.style.phrase)


class Worker:
    """A pipeline and a metric that do one task after another."""

    def __init__(self, load: Callable[[], Any], metric: Callable[[], Metric], sampling: Sampling):
        self.pipe = load()
        self.pipe.set_progress_bar_config(disable=True)
        self.metric = metric()
        self.sampling = sampling
        self.library = Library()

    def do(self, task: Task) -> list[Scored]:
        images = [image for some in batches(task) for image in self.draw(task, some)]
        scores = self.metric.score(images, task.content.name, task.style.name)
        return [
            Scored(task.method, task.content.name, task.style.name, seed, {c: float(v[i]) for c, v in scores.items()})
            for i, seed in enumerate(task.seeds)
        ]

    def draw(self, task: Task, seeds: Sequence[int]) -> list[Any]:
        """One image a seed.  Noise comes from the CPU's generator: the same on every device."""
        s = self.sampling
        given = make_arguments(s.text(task), s.negative, s.steps, s.cfg, s.size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        block = klora(
            self.pipe, task.content.path, task.style.path, seed=seeds[0], library=self.library, **task.settings
        )
        return draw_images(self.pipe, block, **given, num_images_per_prompt=len(seeds), generator=generators)[0]


def batches(task: Task) -> Iterator[tuple[int, ...]]:
    for first in range(0, len(task.seeds), task.batch):
        yield task.seeds[first : first + task.batch]


class Workers(Protocol):
    def __call__(self, tasks: Sequence[Task]) -> Iterable[list[Scored]]: ...


def here(make: Callable[[], Worker]) -> Workers:
    """One after another in this process."""

    def do(tasks: Sequence[Task]) -> Iterator[list[Scored]]:
        worker = make()
        yield from (worker.do(task) for task in tasks)

    return do


def on_ray(make: Callable[[], Worker], address: str) -> Workers:
    """Spread over a Ray cluster, one worker a GPU, or a CPU where there is none; results come in the order of the tasks.

    Files must lie at the same paths on every machine.  Raises SettingsError where Ray is not installed or not reached.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise SettingsError("Ray is not installed; pip install ray", "ray") from None
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise SettingsError(f"no Ray cluster answers at {address!r} ({first_line(e)})", "ray") from None

    class Remote:
        """A refusal travels back as a value: what Ray raises is of its own kind."""

        def __init__(self) -> None:
            self.worker: Worker | None = None

        def do(self, task: Task) -> list[Scored] | KLoraError:
            try:
                self.worker = self.worker or make()
                return self.worker.do(task)
            except KLoraError as e:
                return e

    def do(tasks: Sequence[Task]) -> Iterator[list[Scored]]:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        remote = ray.remote(num_gpus=1)(Remote) if gpus else ray.remote(num_cpus=1)(Remote)
        count = max(1, min(len(tasks), gpus or int(resources.get("CPU", 1))))
        pool = ActorPool([remote.remote() for _ in range(count)])
        try:
            for answer in pool.map(lambda actor, task: actor.do.remote(task), list(tasks)):
                if isinstance(answer, KLoraError):
                    raise answer
                yield answer
        except ray.exceptions.RayError as e:
            raise HostError(f"a worker of the Ray cluster failed: {first_line(e)}") from e

    return do
