"""One ``with klora(...)`` block: from two files and settings to a session for every sampling pass of a pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from ..rule.cache import Library
from ..settings import Settings, quote_value, read_settings
from .calls import count_steps, is_occupied, run_before_forward, wrap_calls
from .clock import Clock, read_train_timesteps
from .model import (
    IMAGE_PIXELS,
    estimate_sampling_memory,
    find_denoiser,
    find_device,
    find_sites,
    refuse_hooks,
    unwrap,
    use_diffusers_order,
)
from .text import describe_missing, make_text_actors

File = str | os.PathLike[str]
Callback = Callable[[int, int], None]  # (index of the denoiser call from 1, number of calls in the pass)


class Run:
    """The state of one ``with klora(...)`` block.

    passes: the sampling passes so far.  notes: sentences about what of the pair cannot be used on this pipeline.
    """

    def __init__(self, pipe: Any, fusion: Fusion, seed: int, callback: Callback | None):
        self.pipe = pipe
        self.fusion = fusion
        self.seed = seed
        self.callback = callback
        self.denoiser = find_denoiser(pipe)
        self.passes: list[SamplingPass] = []
        self.notes: list[str] = []
        self.strength: float | None = None  # of the present call of the pipeline
        self.clock: Clock | None = None

    @property
    def settings(self) -> Settings:
        return self.fusion.settings

    def infotext(self) -> str:
        """What a WebUI would write about these settings into the image: `K-LoRA content: …, K-LoRA style: …`."""
        return infotext.join(infotext.write(self.settings))

    def table(self, number: int = 0) -> Tensor:
        """What acted in pass ``number``, for the map: masks, uint8 [units, denoiser calls]."""
        return self.passes[number].table()

    @contextmanager
    def run_call(self, given: Mapping[str, Any]) -> Iterator[None]:
        """One call of the pipeline, with arguments ``given``.  Raises HostError if it sampled without K-LoRA."""
        if find_denoiser(self.pipe) is not self.denoiser:
            raise HostError("the pipeline got another denoiser after klora() began; open a new block for it")
        late = given.get("denoising_start") is not None  # if it is given, diffusers ignores the strength
        self.strength = None if late or given.get("strength") is None else float(given["strength"])
        self.close()
        before = len(self.passes)
        try:
            with count_steps(self.pipe.scheduler) as steps:
                yield
            self.check_passes(self.passes[before:], len(steps))
        finally:
            self.close()

    def check_passes(self, passes: list[SamplingPass], steps: int) -> None:
        """Raise HostError if K-LoRA did not act in every one of the call's scheduler ``steps``, or a check fails."""
        stopped = bool(getattr(self.pipe, "interrupt", False))
        acted = sum(len(each.progress) for each in passes)
        if acted < steps or not (passes or stopped):
            raise HostError(f"the pipeline made {steps} scheduler steps, and K-LoRA was told of {acted} of them")
        for each in passes[-1:]:
            each.check(len(each.progress), stopped)

    def advance(self, given: Mapping[str, Any]) -> None:
        """Called before every denoiser call: sets the model to the choice for this step."""
        timestep = float(torch.as_tensor(given["timestep"]).flatten()[0])
        if self.clock is None or self.clock.timesteps is not self.pipe.scheduler.timesteps:
            self.close()
            self.open_pass(Clock(self.pipe.scheduler, timestep, self.strength), estimate_sampling_memory(given))
        else:
            self.clock.advance(timestep)
        assert self.clock is not None
        current = self.passes[-1]
        again = self.clock.call_index < len(current.progress)  # guidance may call the denoiser twice at one index
        current.advance(self.clock.find_progress(self.settings.progress), again)
        if self.callback is not None:
            self.callback(self.clock.call_index + 1, self.clock.call_count)

    def open_pass(self, clock: Clock, reserve: int) -> None:
        """Plan the pass and make the pair ready on the present denoiser.  ``reserve``: bytes to leave to the sampling."""
        session, _ = self.make_session(self.read_target(reserve), clock.full_steps)
        self.passes.append(SamplingPass(session))
        self.clock = clock

    def read_target(self, reserve: int = sampling_bytes(IMAGE_PIXELS)) -> Target:
        return read_target(self.pipe, self.denoiser, reserve)

    def make_session(self, target: Target, steps: int) -> tuple[Session, list[str]]:
        """A session, and the pair's layers that are missing.  Changes nothing.

        Raises PairError if the pair does not fit, HostError if the engine cannot work on the denoiser.
        """
        (_, content), (_, style) = self.settings.weights
        session, missing = self.fusion.open(target, (content, style), steps, self.seed)
        refuse_hooks(session.actors, self.denoiser)
        return session, missing

    def close(self) -> None:
        """Give the denoiser back as it was.  May be called again."""
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

    Args: seed: the image's, for the method ``random``.  callback: called before every denoiser call with its index in the
        schedule, from 1, and the number of indices in the pass (one per sampler step, two with second-order samplers).
        library: keeps files and scores for the next block.  settings: those of ``klora_lib.settings``.
    Raises a KLoraError, before anything is changed, if settings, files and model do not fit together.
    """
    paths = read_path(content, "content"), read_path(style, "style")
    names = {"content": paths[0].stem, "style": paths[1].stem}
    chosen = read_settings({"enabled": True, **settings, **names})
    run = prepare(pipe, paths, chosen, seed, callback, library or Library())
    if not chosen.enabled:
        yield run
        return
    texts, missing = make_text_actors(pipe, run.fusion.pair, chosen, find_device(pipe, run.denoiser))
    run.notes += describe_missing(missing, "the text encoders")
    for note in run.notes:
        logging.getLogger(__name__).warning("K-LoRA: %s", note)
    with (
        standing(texts, find_device(pipe, run.denoiser)),
        run_before_forward(run.denoiser, run.advance, type(unwrap(run.denoiser)).forward),
        wrap_calls(pipe, run.run_call),
    ):
        try:
            yield run
        finally:
            run.close()


def prepare(
    pipe: Any, paths: tuple[Path, Path], settings: Settings, seed: int, callback: Callback | None, library: Library
) -> Run:
    """Read, pair, score and plan, and check that the pair fits the pipeline's denoiser.  Changes nothing."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingsError(f"must be a whole number, not {quote_value(seed)}", "seed")
    denoiser = find_denoiser(pipe)
    if settings.progress == "noise":
        read_train_timesteps(pipe.scheduler)
    if is_occupied(denoiser):
        raise HostError("a klora block is already open on this pipeline; close it first")
    if paths[0].resolve() == paths[1].resolve():
        raise SettingsError(f"must be another LoRA than content, both are {paths[0].stem!r}", "style")
    loaded = read_target(pipe, denoiser)
    content, style = ((path, path.stem) for path in paths)
    fusion = fuse_files(library, (content, style), settings, loaded, lambda pair: use_diffusers_order(pair, loaded.sites))
    run = Run(pipe, fusion, seed, callback)
    with roles_named():
        _, missing = run.make_session(loaded, 1)  # only checks that the pair fits and the engine works; it is not used
    for file in (fusion.pair.content, fusion.pair.style):
        run.notes += file.notes
        if file.bundled:
            run.notes.append(f"{file.name!r} has embeddings in it, which are not loaded: {', '.join(file.bundled[:3])}")
    run.notes += describe_missing(missing, f"the {type(unwrap(denoiser)).__name__}")
    return run


def read_target(pipe: Any, denoiser: nn.Module, reserve: int = sampling_bytes(IMAGE_PIXELS)) -> Target:
    return Target(find_sites(denoiser), type(pipe).__name__, find_device(pipe, denoiser), reserve)


def read_path(file: Any, role: str) -> Path:
    try:
        return Path(file)
    except TypeError:
        raise SettingsError(f"must be the path of a .safetensors file, not {quote_value(file)}", role) from None
