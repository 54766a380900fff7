"""One ``with klora(...)`` block: from two files and settings to a session for every sampling pass of a pipeline."""

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
from ..engine.fusion import Fusion, Target, blame_both, fuse_files
from ..engine.memory import estimate_sampling_bytes
from ..engine.sampling import SamplingPass
from ..engine.session import Session
from ..engine.standing import apply_throughout
from ..errors import HostError, SettingsError
from ..lora.peft import find_weights, name_file
from ..rule.cache import Library
from ..settings import Settings, quote_value, read_settings
from .calls import count_steps, is_occupied, run_before_forward, wrap_calls
from .clock import Clock, read_train_timesteps
from .model import (
    IMAGE_PIXELS,
    estimate_sampling_memory,
    find_denoisers,
    find_device,
    find_sites,
    name_model,
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
        self.denoisers = find_denoisers(pipe)
        self.current_denoiser: nn.Module | None = None  # the one that the open pass acts on
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
        if find_denoisers(self.pipe) != self.denoisers:
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

    def advance(self, denoiser: nn.Module, given: Mapping[str, Any]) -> None:
        """Called before every call of ``denoiser``: sets it to the choice for this step."""
        timestep = float(torch.as_tensor(given["timestep"]).max())  # Wan has one per token, which is 0 for a given picture
        if self.clock is None or self.clock.timesteps is not self.pipe.scheduler.timesteps:
            self.close()
            self.open_pass(Clock(self.pipe.scheduler, timestep, self.strength), denoiser, estimate_sampling_memory(given))
        else:
            self.clock.advance(timestep)
            self.move_to(denoiser, estimate_sampling_memory(given))
        assert self.clock is not None
        current = self.passes[-1]
        again = self.clock.call_index < len(current.progress)  # guidance may call the denoiser twice at one index
        current.advance(self.clock.find_progress(self.settings.progress), again)
        if self.callback is not None:
            self.callback(self.clock.call_index + 1, self.clock.call_count)

    def open_pass(self, clock: Clock, denoiser: nn.Module, reserve: int) -> None:
        """Plan the pass and make the pair ready on ``denoiser``.  ``reserve``: bytes to leave to the sampling."""
        session, _ = self.make_session(denoiser, clock.full_steps, reserve)
        self.passes.append(SamplingPass(session))
        self.clock, self.current_denoiser = clock, denoiser

    def move_to(self, denoiser: nn.Module, reserve: int) -> None:
        """Continue the pass on ``denoiser``, with the same plan, and give the denoiser before it back as it was."""
        current = self.passes[-1]
        if denoiser is not self.current_denoiser and not current.closed:
            assert self.clock is not None
            current.move(self.make_session(denoiser, self.clock.full_steps, reserve)[0])
            self.current_denoiser = denoiser

    def make_session(
        self, denoiser: nn.Module, steps: int, reserve: int = estimate_sampling_bytes(IMAGE_PIXELS)
    ) -> tuple[Session, list[str]]:
        """A session for a pass of ``steps`` on ``denoiser``, and the pair's layers that it does not have.  Changes nothing.

        Raises PairError if the pair does not fit the denoiser, HostError if the engine cannot work on it.
        """
        (_, content), (_, style) = self.settings.weights
        target = read_target(self.pipe, denoiser, reserve)
        again = self.fusion.pair.relative and denoiser is not self.denoisers[0]  # OFT and IA3: another model, other scores
        fusion = self.fusion.score_again(target) if again else self.fusion
        session, missing = fusion.open(target, (content, style), steps, self.seed)
        refuse_hooks(session.actors, denoiser)
        return session, missing

    def close(self) -> None:
        """Give the denoisers back as they were.  May be called again."""
        self.clock = self.current_denoiser = None
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
        ``random``.  callback: called before every denoiser call with its index in the schedule, from 1, and the number of
        indices in the pass (one per sampler step, two with second-order samplers).  library: keeps files and scores for
        the next block.  settings: those of ``klora_lib.settings``.
    Raises a KLoraError, before anything is changed, if settings, files and model do not fit together.
    """
    paths = read_path(content, "content"), read_path(style, "style")
    names = {"content": name_file(paths[0]), "style": name_file(paths[1])}
    chosen = read_settings({"enabled": True, **settings, **names})
    run = prepare(pipe, paths, chosen, seed, callback, library or Library())
    if not chosen.enabled:
        yield run
        return
    device = find_device(pipe, run.denoisers[0])
    texts, missing = make_text_actors(pipe, run.fusion.pair, chosen, device)
    run.notes += describe_missing(missing, "the text encoders")
    for note in run.notes:
        logging.getLogger(__name__).warning("K-LoRA: %s", note)
    with apply_throughout(texts, device), ExitStack() as hooks, wrap_calls(pipe, run.run_call):
        for denoiser in run.denoisers:
            act = partial(run.advance, denoiser)
            hooks.enter_context(run_before_forward(denoiser, act, type(unwrap(denoiser)).forward))
        try:
            yield run
        finally:
            run.close()


def prepare(
    pipe: Any, paths: tuple[Path, Path], settings: Settings, seed: int, callback: Callback | None, library: Library
) -> Run:
    """Read, pair, score and plan, and check that the pair fits the pipeline's denoisers.  Changes nothing."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingsError(f"must be a whole number, not {quote_value(seed)}", "seed")
    denoisers = find_denoisers(pipe)
    if settings.progress == "noise":
        read_train_timesteps(pipe.scheduler)
    if any(is_occupied(denoiser) for denoiser in denoisers):
        raise HostError("a klora block is already open on this pipeline; close it first")
    if find_weights(paths[0]).resolve() == find_weights(paths[1]).resolve():
        raise SettingsError(f"must be another LoRA than content, both are {name_file(paths[0])!r}", "style")
    loaded = read_target(pipe, denoisers[0])
    content, style = ((path, name_file(path)) for path in paths)
    fusion = fuse_files(library, (content, style), settings, loaded, lambda pair: use_diffusers_order(pair, loaded.sites))
    run = Run(pipe, fusion, seed, callback)
    with blame_both():  # only checks that the pair fits and the engine works; these sessions are not used
        opened = [(denoiser, *run.make_session(denoiser, 1)) for denoiser in denoisers]
    for file in (fusion.pair.content, fusion.pair.style):
        run.notes += file.notes
        if file.bundled:
            run.notes.append(f"{file.name!r} has embeddings in it, which are not loaded: {', '.join(file.bundled[:3])}")
    sentences = [describe_missing(missing, f"the {type(unwrap(denoiser)).__name__}") for denoiser, _, missing in opened]
    run.notes += dict.fromkeys([*opened[0][1].plan.notes, *(note for notes in sentences for note in notes)])
    return run


def read_target(pipe: Any, denoiser: nn.Module, reserve: int = estimate_sampling_bytes(IMAGE_PIXELS)) -> Target:
    return Target(find_sites(denoiser), name_model(pipe), find_device(pipe, denoiser), reserve)


def read_path(file: Any, role: str) -> Path:
    try:
        return Path(file)
    except TypeError:
        raise SettingsError(f"must be the path of a .safetensors file, not {quote_value(file)}", role) from None
