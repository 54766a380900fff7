"""Where the time goes that is left: torch's own operations while a pair is scored, and while it switches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from klora_lib.rule.scoring import score_units

from .bypass import open_session
from .pairs import make_sdxl_pair
from .sampling import STEPS, Scene
from .tables import make_table

MOST = 6  # operations that are named
HEAD = ("while", "operations, by their own share of the time")


def profile_operations(act: Callable[[], object], device: torch.device) -> str:
    """The operations that take most of the time by themselves, with their share in percent and the number of calls."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as found:
        act()
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [(e.key, getattr(e, field), e.count) for e in found.key_averages()]
    total = sum(time for _, time, _ in events) or 1
    events.sort(key=lambda event: -event[1])
    named = [(key.removeprefix("aten::"), 100 * time / total, count) for key, time, count in events[:MOST]]
    return ", ".join(f"{key} {share:.0f} % ({count})" for key, share, count in named)


def measure(device: torch.device, quick: bool = False) -> list[str]:
    pair = make_sdxl_pair((8, 8) if quick else (32, 64))
    score_units(pair.units[:4], "auto", device)
    scoring = profile_operations(lambda: score_units(pair.units, "auto", device), device)
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        session = open_session(scene, "merge")

        def later() -> None:
            for t in range(1, STEPS):
                session.advance(t / STEPS)

        first = profile_operations(lambda: session.advance(0.0), device)
        switching = profile_operations(later, device)
        closing = profile_operations(session.close, device)
    title = "a full-size SDXL pair is scored" if not quick else "a pair of rank 8 is scored"
    return make_table(
        HEAD,
        [[title, scoring], ["it acts for the first time", first], [f"it switches in {STEPS} steps", switching],
         ["the model is given back", closing]],
    )  # fmt: skip
