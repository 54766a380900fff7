"""Updates that act at every step: those of the text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ..numerics import exact_math
from ..rule.selectors import BOTH
from .memory import report_no_memory
from .session import close_all, raise_first
from .site import Actor


@contextmanager
def apply_throughout(actors: Sequence[Actor], device: torch.device) -> Iterator[None]:
    """While open, every site carries all its updates; afterwards the model is bit for bit what it was."""
    try:
        with report_no_memory(device, "for the pair's text encoder parts"), exact_math(device):
            for actor in actors:
                actor.show(BOTH)
        for actor in actors:  # nothing more is computed
            actor.claims.budget.drop_scratch()
        yield
    finally:
        with exact_math(device):
            errors = list(close_all(reversed(actors)))
        raise_first(errors)
