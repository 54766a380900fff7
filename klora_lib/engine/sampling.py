"""One sampling pass from outside: is it ours from its first denoiser call to its last?"""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import AbstractContextManager

from torch import Tensor, nn

from ..errors import HostError, format_count
from ..rule.plan import Plan
from .session import Session


class SamplingPass:
    """A session on the loaded model, and what a sampler made of it.

    progress: in [0, 1), at each denoiser call that we were told of.  It belongs to the thread that opened it.
    """

    def __init__(self, session: Session):
        self.session = session
        self.progress: list[float] = []
        self.thread = threading.get_ident()
        self.ended_early = False

    @property
    def plan(self) -> Plan:
        return self.session.plan

    @property
    def closed(self) -> bool:
        return self.session.closed

    @property
    def at_home(self) -> bool:
        """Whether the running thread is the one that samples."""
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
        """The following denoiser calls are another model's (Wan 2.2 has two): the pass goes on there.

        Raises HostError where the first one's choice did not act until now.
        """
        self.refuse_altered()
        self.session.close()
        self.session = session

    def end_early(self) -> None:
        """The rest of the pass is another model's (refiner): give this one back."""
        self.ended_early = True
        self.session.close()

    def check(self, calls: int, stopped: bool) -> None:
        """Raise HostError where the sampler drew without our choice, in part or in all: that image is not K-LoRA's.

        Args: calls: how many denoiser calls the sampler made.  stopped: whether the user interrupted or skipped it.
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
        if altered := self.session.altered():
            raise HostError(f"something else rewrote {format_count(len(altered), 'layer')} of those that carried the pair, "
                            f"{altered[0]} among them, before the sampling pass ended")  # fmt: skip

    def close(self) -> None:
        """The model as it was; safe to call again."""
        self.session.close()

    def table(self) -> Tensor:
        """What acted: masks, uint8 [units, denoiser calls]."""
        return self.plan.over(self.progress)
