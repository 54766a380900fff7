"""Candidates timed in turns in one run, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch

CPU = torch.device("cpu")
Times = dict[str, list[float]]  # candidate → seconds, one a round
NOTHING: Mapping[str, Callable[[], AbstractContextManager[object]]] = {}


def read_clock(device: torch.device = CPU) -> float:
    """Seconds, when all that was asked of ``device`` is done: the processor's where one thread works, else the wall's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def measure_seconds(act: Callable[[], object], device: torch.device = CPU) -> float:
    start = read_clock(device)
    act()
    return read_clock(device) - start


def take_turns(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: torch.device = CPU, limit: float = math.inf,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] = NOTHING,
) -> Times:  # fmt: skip
    """Seconds of every candidate in every round.  Every second round runs backwards.

    limit: seconds after which no further round begins; there is always one.  around: what a candidate needs before and
    after it, and is not timed.
    """
    times: Times = {name: [] for name in candidates}
    began = time.monotonic()
    for i in range(rounds):
        if i and time.monotonic() - began > limit:
            break
        for name in list(candidates)[:: -1 if i % 2 else 1]:
            with around.get(name, nullcontext)():
                times[name].append(measure_seconds(candidates[name], device))
    return times


def find_ratios(times: Times, name: str, other: str) -> list[float]:
    """Of each round, the seconds of ``name`` divided by those of ``other``."""
    return [mine / theirs for mine, theirs in zip(times[name], times[other])]


def format_spread(values: list[float], digits: int = 2) -> str:
    """The median, and the least and the most where there are several."""
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"
