"""One sampling pass, and the check that our choice acted in all of its denoiser calls."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import HostError, format_count
from ..rule.plan import Plan
from .session import Session


class SamplingPass:
    """A session on the loaded model, and the denoiser calls of the sampler so far.

    progress: in [0, 1), of each denoiser call that was reported to us.  start: where the schedule begins, in [0, 1].
    A pass belongs to the thread that opened it.
    """

    def __init__(self, session: Session, is_hires: bool = False, start: float = 0.0):
        self.session = session
        self.plans = [(0, session.plan)]  # the number of the call from which on each is followed
        self.progress: list[float] = []
        self.thread = threading.get_ident()
        self.ended_early = False
        self.is_hires = is_hires
        self.start = start

    @property
    def plan(self) -> Plan:
        return self.session.plan

    @property
    def closed(self) -> bool:
        return self.session.closed

    @property
    def at_home(self) -> bool:
        """Whether the current thread is the one that samples."""
        return threading.get_ident() == self.thread

    def advance(self, progress: float, again: bool = False) -> None:
        """A denoiser call is about to happen.  ``again``: a further call at the same place of the schedule (guidance)."""
        if self.closed:
            return
        if not again:
            self.progress.append(progress)
        self.session.advance(progress)

    def aside(self, modules: Collection[nn.Module] | None = None) -> AbstractContextManager[None]:
        """See ``Session.aside``."""
        return self.session.aside(modules)

    def move(self, session: Session) -> None:
        """Continue the pass on another denoiser (Wan 2.2 has two).

        Raises HostError if our choice did not act on the first one until now.
        """
        self.refuse_altered()
        self.session.close()
        self.session = session
        self.plans.append((len(self.progress), session.plan))

    def end_early(self) -> None:
        """The rest of the pass uses another model (the refiner): restore this one."""
        self.ended_early = True
        self.session.close()

    def check(self, calls: int, stopped: bool) -> None:
        """Raise HostError if the sampler made some or all of its denoiser calls without our choice.

        Args: calls: the number of denoiser calls.  stopped: whether the user interrupted or skipped the pass.
        """
        heard = len(self.progress)
        if heard == 0 and not stopped:
            raise HostError(f"the sampler ended after {calls} denoiser calls, and K-LoRA was told of none; is another "
                            "extension sampling in this WebUI's place?")  # fmt: skip
        if self.ended_early:
            return
        if self.closed:
            raise HostError("the pair was taken out of the model before the sampling pass ended")
        if heard < calls:
            raise HostError(f"the sampler made {calls} denoiser calls, and K-LoRA was told of {heard} of them")
        self.refuse_altered()

    def refuse_altered(self) -> None:
        if altered := self.session.find_altered():
            raise HostError(f"something else rewrote {format_count(len(altered), 'layer')} of those that carried the pair, "
                            f"{altered[0]} among them, before the sampling pass ended")  # fmt: skip

    def close(self) -> None:
        """Restore the model; may be called twice."""
        self.session.close()

    def table(self) -> Tensor:
        """Which LoRA acted: masks, uint8 [units, denoiser calls]."""
        edges = [*(first for first, _ in self.plans), len(self.progress)]
        return torch.cat([plan.over(self.progress[i:j]) for (_, plan), (i, j) in zip(self.plans, pairwise(edges))], 1)
