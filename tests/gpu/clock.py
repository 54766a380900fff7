"""Seconds and bytes on a device whose work runs behind the program's back."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

MB = 1 << 20


class Cost(NamedTuple):
    seconds: float
    peak: int | None  # bytes of the device's memory; None where nobody counts them


class Clock:
    def __init__(self, device: torch.device):
        self.library = getattr(torch, device.type)  # torch.cuda, torch.xpu, torch.cpu, …
        self.counts = hasattr(self.library, "max_memory_allocated")

    def now(self) -> float:
        """When all that was asked for is done."""
        self.library.synchronize()
        return time.perf_counter()

    def measure(self, act: Callable[[], object]) -> Cost:
        if self.counts:
            self.library.reset_peak_memory_stats()
        start = self.now()
        act()
        seconds = self.now() - start
        return Cost(seconds, self.library.max_memory_allocated() if self.counts else None)

    def memory(self, rounds: list[tuple[Cost, Cost]]) -> str:
        """plain → K-LoRA, MB."""
        if not self.counts:
            return "not run: needs cuda"
        plain, ours = (max(cost.peak or 0 for cost in costs) / MB for costs in zip(*rounds))
        return f"{plain:.0f} → {ours:.0f} (+{ours - plain:.0f})"

    def times(self, rounds: list[tuple[Cost, Cost]]) -> str:
        """plain → K-LoRA, seconds, and the median ratio of the rounds."""
        plain, ours = (median(cost.seconds for cost in costs) for costs in zip(*rounds))
        return f"{plain:.2f} → {ours:.2f} (×{median(ours.seconds / plain.seconds for plain, ours in rounds):.2f})"


def switch_times(run: Any, denoiser: nn.Module, clock: Clock, draw: Callable[[], object]) -> tuple[int, float]:
    """(layers switched after the first call, seconds they took): between a hook before K-LoRA's own and one behind it.

    The first call is left out: planning and opening are in it.
    """
    began, told = [0.0], [(0, 0.0)]  # switches so far and seconds, a call

    def first(*_: Any) -> None:
        began[0] = clock.now()

    def last(*_: Any) -> None:
        told.append((run.passes[-1].session.switches, clock.now() - began[0]))

    handles = [denoiser.register_forward_pre_hook(first, prepend=True), denoiser.register_forward_pre_hook(last)]
    try:
        draw()
    finally:
        for handle in handles:
            handle.remove()
    calls = told[1:]
    switched = [(after[0] - before[0], after[1]) for before, after in zip(calls, calls[1:])]
    return sum(n for n, _ in switched), sum(seconds for n, seconds in switched if n)
