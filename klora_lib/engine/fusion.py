"""A pair that is ready to act on a model: what a job of a WebUI and a block around a diffusers pipeline share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from ..errors import PairError
from ..rule.cache import Library
from ..rule.energies import measure_pair
from ..rule.pairing import Pair
from ..rule.plan import make_plan
from ..rule.scoring import Scores
from ..settings import Settings
from .fit import make_weight_reader, place_units, refuse_misfit
from .memory import MemoryBudget
from .session import Session
from .site import Site

Listed = tuple[str | os.PathLike[str], str]  # a file's path, and the name by which messages call it


@dataclass(frozen=True)
class Target:
    """The loaded denoiser, as it is now."""

    sites: Mapping[str, Site]  # its layers by canonical name
    name: str  # in messages
    device: torch.device  # where it computes
    reserve: int  # bytes of the device to leave to the sampling


@dataclass(frozen=True)
class Fusion:
    """Two LoRAs read, aligned and scored, under one set of settings."""

    pair: Pair
    scores: Scores
    settings: Settings

    def open(self, target: Target, weights: tuple[float, float], steps: int, seed: int = 0) -> tuple[Session, list[str]]:
        """A session on ``target`` for a pass of ``steps`` sampler steps, and the pair's layers that it does not have.

        Nothing is changed before the session advances.
        Args: weights: the user's denoiser weights of content and style.  seed: the image's.
        Raises PairError where the pair does not fit, HostError where the engine cannot act there.
        """
        plan = make_plan(self.pair, self.scores, self.settings, steps, seed)
        placed, missing = place_units(plan, self.pair, target.sites, weights, target.name)
        return Session(plan, placed, self.settings.engine, target.device, target.reserve), missing

    def score_again(self, target: Target) -> Fusion:
        """The same pair with the scores of ``target``'s weights, for OFT, BOFT and IA3."""
        free = MemoryBudget.on(target.device, target.reserve).free
        scores = measure_pair(self.pair.units, self.settings, target.device, free, make_weight_reader(target.sites))
        return replace(self, scores=replace(scores, directions=self.scores.directions))  # which are the files' own


def fuse_files(
    library: Library, files: tuple[Listed, Listed], settings: Settings, target: Target,
    arrange: Callable[[Pair], Pair] = lambda pair: pair,
) -> Fusion:  # fmt: skip
    """Read and score content and style.  ``arrange``: puts the pair's rows into the order of the target.

    Raises LoraFileError and PairError that name the role: before the scoring where the pair does not fit the target.
    """
    content, style = library.read_both(*files)
    with blame_both():
        pair = arrange(library.pair(content, style))
        refuse_misfit(pair, target.sites, target.name)
        free = MemoryBudget.on(target.device, target.reserve).free
        scores = library.measure(pair, settings, target.device, free, make_weight_reader(target.sites))
        return Fusion(pair, scores, settings)


@contextmanager
def blame_both() -> Iterator[None]:
    """While open, a PairError without a field gets the field "content and style"."""
    try:
        yield
    except PairError as e:
        raise e if e.field else e.blame("content and style") from None
