"""One block: from two files and settings to a session around every sampling pass of a pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import infotext
from ...core.cache import Library
from ...core.pairing import Pair
from ...core.peft import name_of, weights_in
from ...core.plan import Plan, make_plan
from ...core.scoring import Scores
from ...engine.fit import place
from ...engine.sampling import SamplingPass
from ...engine.session import Placed, Session
from ...engine.standing import standing
from ...errors import HostError, PairError, SettingsError
from ...settings import Settings, read_settings, shown
from .calls import around_calls, before_forward, count_steps, occupied
from .clock import Clock, train_timesteps
from .model import bare, denoiser_of, device_of, in_diffusers_order, refuse_hooks, sites
from .text import text_actors, told

File = str | os.PathLike[str]
Callback = Callable[[int, int], None]  # (place in the schedule from 1, places of the pass)


class Run:
    """What happens in one ``with klora(...)``.

    passes: the sampling passes so far.  notes: what of the pair has no place here.
    """

    def __init__(self, pipe: Any, settings: Settings, pair: Pair, scores: Scores, seed: int, callback: Callback | None):
        self.pipe = pipe
        self.settings = settings
        self.pair = pair
        self.scores = scores
        self.seed = seed
        self.callback = callback
        self.denoiser = denoiser_of(pipe)
        self.passes: list[SamplingPass] = []
        self.notes: list[str] = []
        self.strength: float | None = None  # of the pipeline call that is running
        self.clock: Clock | None = None

    def infotext(self) -> str:
        """What a WebUI would write of these settings into the image: `K-LoRA content: …, K-LoRA style: …`."""
        return infotext.joined(infotext.write(self.settings))

    def table(self, number: int = 0) -> Tensor:
        """What acted in one of the passes, for the map: masks, uint8 [units, places in the schedule]."""
        return self.passes[number].table()

    @contextmanager
    def sampling(self, given: Mapping[str, Any]) -> Iterator[None]:
        """One call of the pipeline, with arguments ``given``.  Raises HostError where it sampled without us."""
        if denoiser_of(self.pipe) is not self.denoiser:
            raise HostError("the pipeline got another denoiser after klora() began; open a new block for it")
        late = given.get("denoising_start") is not None  # which overrules the strength
        self.strength = None if late or given.get("strength") is None else float(given["strength"])
        self.close()
        before = len(self.passes)
        try:
            with count_steps(self.pipe.scheduler) as steps:
                yield
            self.check(self.passes[before:], len(steps))
        finally:
            self.close()

    def check(self, passes: list[SamplingPass], steps: int) -> None:
        """Raise HostError where one of the call's ``passes`` was not ours throughout, or ``steps`` were made without us."""
        stopped = bool(getattr(self.pipe, "interrupt", False))
        heard = sum(len(each.progress) for each in passes)
        if heard < steps or not (passes or stopped):
            raise HostError(f"the pipeline made {steps} scheduler steps, and K-LoRA was told of {heard} of them")
        for each in passes[-1:]:
            each.check(len(each.progress), stopped)

    def before_denoising(self, given: Mapping[str, Any]) -> None:
        """A denoiser call is about to happen: bring the model to its place in the plan."""
        timestep = float(torch.as_tensor(given["timestep"]).flatten()[0])
        if self.clock is None or self.clock.timesteps is not self.pipe.scheduler.timesteps:
            self.close()
            self.open(Clock(self.pipe.scheduler, timestep, self.strength))
        else:
            self.clock.tick(timestep)
        assert self.clock is not None
        current = self.passes[-1]
        again = self.clock.call < len(current.progress)  # guidance may call twice at one place
        current.advance(self.clock.progress(self.settings.progress), again)
        if self.callback is not None:
            self.callback(self.clock.call + 1, self.clock.total)

    def open(self, clock: Clock) -> None:
        """Plan the pass and place the pair on the denoiser as it is now."""
        plan = make_plan(self.pair, self.scores, self.settings, clock.whole, self.seed)
        placed, _ = self.place(plan)
        self.passes.append(SamplingPass(plan, self.new_session(plan, placed)))
        self.clock = clock

    def place(self, plan: Plan) -> tuple[list[Placed], list[str]]:
        (_, content), (_, style) = self.settings.weights
        return place(plan, self.pair, sites(self.denoiser), (content, style), type(self.pipe).__name__)

    def new_session(self, plan: Plan, placed: list[Placed]) -> Session:
        """Raises HostError where the engine cannot work on the denoiser; nothing is changed yet."""
        session = Session(plan, placed, self.settings.engine, device_of(self.pipe, self.denoiser))
        refuse_hooks(session.actors, self.denoiser)
        return session

    def close(self) -> None:
        """The denoiser as it was; safe to call again."""
        self.clock = None
        for each in self.passes[-1:]:
            each.close()


@contextmanager
def klora(
    pipe: Any,
    content: File,
    style: File,
    *,
    seed: int = 0,
    callback: Callback | None = None,
    library: Library | None = None,
    **settings: Any,
) -> Iterator[Run]:
    """While open, ``pipe`` samples with K-LoRA's choice between two LoRA files; afterwards it is bit for bit as before.

    Args: content, style: paths of .safetensors files, or of folders that PEFT saved.  seed: the image's, for the method
        ``random``.  callback: called before every denoiser call with its place in the schedule, from 1, and the places of
        the pass (one a sampler step, two with second-order samplers).  library: keeps files and scores for the next block.
        settings: those of ``klora_lib.settings``.
    Raises a KLoraError, before anything is changed, where settings, files or model do not go together.
    """
    paths = as_path(content, "content"), as_path(style, "style")
    names = {"content": name_of(paths[0]), "style": name_of(paths[1])}
    chosen = read_settings({"enabled": True, **settings, **names})
    run = prepare(pipe, paths, chosen, seed, callback, library or Library())
    if not chosen.enabled:
        yield run
        return
    texts, missing = text_actors(pipe, run.pair, chosen, device_of(pipe, run.denoiser))
    run.notes += told(missing, "the text encoders")
    for note in run.notes:
        logging.getLogger(__name__).warning("K-LoRA: %s", note)
    with (
        standing(texts, device_of(pipe, run.denoiser)),
        before_forward(run.denoiser, run.before_denoising, type(bare(run.denoiser)).forward),
        around_calls(pipe, run.sampling),
    ):
        try:
            yield run
        finally:
            run.close()


def prepare(
    pipe: Any, paths: tuple[Path, Path], settings: Settings, seed: int, callback: Callback | None, library: Library
) -> Run:
    """Read, pair, score and plan, and see whether the pipeline's denoiser fits.  Changes nothing."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingsError(f"must be a whole number, not {shown(seed)}", "seed")
    denoiser = denoiser_of(pipe)
    if settings.progress == "noise":
        train_timesteps(pipe.scheduler)
    if occupied(denoiser):
        raise HostError("a klora block is already open on this pipeline; close it first")
    if weights_in(paths[0]).resolve() == weights_in(paths[1]).resolve():
        raise SettingsError(f"must be another LoRA than content, both are {name_of(paths[0])!r}", "style")
    files = library.read_both(*((path, name_of(path)) for path in paths))
    device = device_of(pipe, denoiser)
    try:
        there = sites(denoiser)
        pair = library.pair(*files)
        scores = library.score(pair, settings.k, device)
        run = Run(pipe, settings, in_diffusers_order(pair, there), scores, seed, callback)
        plan = make_plan(run.pair, scores, settings, 1, seed)
        placed, missing = run.place(plan)
        run.new_session(plan, placed)  # never advanced: only to hear whether the engine can
    except PairError as e:
        raise e if e.field else e.about("content and style") from None
    run.notes += [*plan.notes, *told(missing, f"the {type(bare(denoiser)).__name__}")]
    return run


def as_path(file: Any, role: str) -> Path:
    try:
        return Path(file)
    except TypeError:
        raise SettingsError(f"must be the path of a .safetensors file, not {shown(file)}", role) from None
