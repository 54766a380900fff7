"""One block: from two files and settings to a session around every sampling pass of a pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import infotext
from ..engine.fusion import Fusion, Target, fuse_files, roles_named
from ..engine.memory import sampling_bytes
from ..engine.sampling import SamplingPass
from ..engine.session import Session
from ..engine.standing import standing
from ..errors import HostError, SettingsError
from ..lora.peft import name_of, weights_in
from ..rule.cache import Library
from ..settings import Settings, quote_value, read_settings
from .calls import around_calls, before_forward, count_steps, is_occupied
from .clock import Clock, train_timesteps
from .model import IMAGE, bare, denoisers_of, device_of, in_diffusers_order, model_name, refuse_hooks, sampling_memory, sites
from .text import describe_missing, text_actors

File = str | os.PathLike[str]
Callback = Callable[[int, int], None]  # (place in the schedule from 1, places of the pass)


class Run:
    """What happens in one ``with klora(...)``.

    passes: the sampling passes so far.  notes: what of the pair has no place here.
    """

    def __init__(self, pipe: Any, fusion: Fusion, seed: int, callback: Callback | None):
        self.pipe = pipe
        self.fusion = fusion
        self.seed = seed
        self.callback = callback
        self.denoisers = denoisers_of(pipe)
        self.acting: nn.Module | None = None  # which of them carries the choice
        self.passes: list[SamplingPass] = []
        self.notes: list[str] = []
        self.strength: float | None = None  # of the pipeline call that is running
        self.clock: Clock | None = None

    @property
    def settings(self) -> Settings:
        return self.fusion.settings

    def infotext(self) -> str:
        """What a WebUI would write of these settings into the image: `K-LoRA content: …, K-LoRA style: …`."""
        return infotext.join(infotext.write(self.settings))

    def table(self, number: int = 0) -> Tensor:
        """What acted in one of the passes, for the map: masks, uint8 [units, places in the schedule]."""
        return self.passes[number].table()

    @contextmanager
    def sampling(self, given: Mapping[str, Any]) -> Iterator[None]:
        """One call of the pipeline, with arguments ``given``.  Raises HostError where it sampled without us."""
        if denoisers_of(self.pipe) != self.denoisers:
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

    def before_denoising(self, denoiser: nn.Module, given: Mapping[str, Any]) -> None:
        """A call of ``denoiser`` is about to happen: bring it to its place in the plan."""
        timestep = float(torch.as_tensor(given["timestep"]).max())  # Wan: one a token, 0 for those of a given picture
        if self.clock is None or self.clock.timesteps is not self.pipe.scheduler.timesteps:
            self.close()
            self.open(Clock(self.pipe.scheduler, timestep, self.strength), denoiser, sampling_memory(given))
        else:
            self.clock.tick(timestep)
            self.move_to(denoiser, sampling_memory(given))
        assert self.clock is not None
        current = self.passes[-1]
        again = self.clock.call < len(current.progress)  # guidance may call twice at one place
        current.advance(self.clock.progress(self.settings.progress), again)
        if self.callback is not None:
            self.callback(self.clock.call + 1, self.clock.total)

    def open(self, clock: Clock, denoiser: nn.Module, reserve: int) -> None:
        """Plan the pass and place the pair on the denoiser as it is now."""
        session, _ = self.new_session(denoiser, clock.whole, reserve)
        self.passes.append(SamplingPass(session))
        self.clock, self.acting = clock, denoiser

    def move_to(self, denoiser: nn.Module, reserve: int) -> None:
        """The pass goes on in ``denoiser``, by the same plan; the one before is as it was."""
        current = self.passes[-1]
        if denoiser is not self.acting and not current.closed:
            assert self.clock is not None
            current.move(self.new_session(denoiser, self.clock.whole, reserve)[0])
            self.acting = denoiser

    def new_session(
        self, denoiser: nn.Module, steps: int, reserve: int = sampling_bytes(IMAGE)
    ) -> tuple[Session, list[str]]:
        """The plan of a pass of ``steps`` on a denoiser, and the names of the pair's layers that this does not have.

        Nothing is changed yet.  Raises PairError where the pair does not fit it, HostError where the engine cannot work
        on it.
        """
        (_, content), (_, style) = self.settings.weights
        target = read_target(self.pipe, denoiser, reserve)
        session, missing = self.fusion.open(target, (content, style), steps, self.seed)
        refuse_hooks(session.actors, denoiser)
        return session, missing

    def close(self) -> None:
        """The denoisers as they were; safe to call again."""
        self.clock = self.acting = None
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
    device = device_of(pipe, run.denoisers[0])
    texts, missing = text_actors(pipe, run.fusion.pair, chosen, device)
    run.notes += describe_missing(missing, "the text encoders")
    for note in run.notes:
        logging.getLogger(__name__).warning("K-LoRA: %s", note)
    with standing(texts, device), ExitStack() as hooks, around_calls(pipe, run.sampling):
        for denoiser in run.denoisers:
            act = partial(run.before_denoising, denoiser)
            hooks.enter_context(before_forward(denoiser, act, type(bare(denoiser)).forward))
        try:
            yield run
        finally:
            run.close()


def prepare(
    pipe: Any, paths: tuple[Path, Path], settings: Settings, seed: int, callback: Callback | None, library: Library
) -> Run:
    """Read, pair, score and plan, and see whether the pipeline's denoisers fit.  Changes nothing."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingsError(f"must be a whole number, not {quote_value(seed)}", "seed")
    denoisers = denoisers_of(pipe)
    if settings.progress == "noise":
        train_timesteps(pipe.scheduler)
    if any(is_occupied(denoiser) for denoiser in denoisers):
        raise HostError("a klora block is already open on this pipeline; close it first")
    if weights_in(paths[0]).resolve() == weights_in(paths[1]).resolve():
        raise SettingsError(f"must be another LoRA than content, both are {name_of(paths[0])!r}", "style")
    loaded = read_target(pipe, denoisers[0])
    content, style = ((path, name_of(path)) for path in paths)
    fusion = fuse_files(library, (content, style), settings, loaded, lambda pair: in_diffusers_order(pair, loaded.sites))
    run = Run(pipe, fusion, seed, callback)
    with roles_named():  # sessions that are never advanced: only to hear whether the pair fits, and the engine can
        opened = [(denoiser, *run.new_session(denoiser, 1)) for denoiser in denoisers]
    for file in (fusion.pair.content, fusion.pair.style):
        run.notes += file.notes
        if file.bundled:
            run.notes.append(f"{file.name!r} has embeddings in it, which are not loaded: {', '.join(file.bundled[:3])}")
    told = [describe_missing(missing, f"the {type(bare(denoiser)).__name__}") for denoiser, _, missing in opened]
    run.notes += dict.fromkeys([*opened[0][1].plan.notes, *(note for notes in told for note in notes)])
    return run


def read_target(pipe: Any, denoiser: nn.Module, reserve: int = sampling_bytes(IMAGE)) -> Target:
    return Target(sites(denoiser), model_name(pipe), device_of(pipe, denoiser), reserve)


def as_path(file: Any, role: str) -> Path:
    try:
        return Path(file)
    except TypeError:
        raise SettingsError(f"must be the path of a .safetensors file, not {quote_value(file)}", role) from None
