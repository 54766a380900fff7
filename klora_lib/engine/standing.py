"""Updates that stand for as long as a block is open, whatever the progress: the text encoders'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..numerics import exact_math
from ..rule.selectors import BOTH
from .memory import memory_told
from .session import close_all, raise_first
from .site import Actor


@contextmanager
def standing(actors: Sequence[Actor], device: torch.device) -> Iterator[None]:
    """While open, every site carries all its loads; afterwards the model is bit for bit what it was."""
    try:
        with memory_told(device, "for the pair's text encoder parts"), exact_math(device):
            for actor in actors:
                actor.show(BOTH)
        yield
    finally:
        with exact_math(device):
            errors = list(close_all(reversed(actors)))
        raise_first(errors)
