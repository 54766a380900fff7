"""Longer jobs on the full-size UNet: 30 steps, and a batch count of four, against both LoRAs merged plainly."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from . import rivals
from .sampling import STEPS, Scene, check_images, draw_references
from .tables import make_table
from .turns import find_ratios, format_spread, take_turns

LONG, COUNT = 30, 4
JOBS = ((f"one image of {LONG} steps", LONG, 1), (f"{COUNT} images of {STEPS} steps", STEPS, COUNT))
HEAD = ("job", "K-LoRA ÷ merged plainly", "K-LoRA", "merged plainly")


def measure(device: torch.device, quick: bool = False) -> list[str]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        weights = rivals.Weights(scene.layers)

        @contextmanager
        def merged() -> Iterator[None]:
            weights.add_both()
            yield
            weights.restore()

        scene.draw("plain", LONG)
        scene.prepare()
        draw_references(scene, weights, LONG)
        for title, steps, count in JOBS:
            candidates = {
                "merged": lambda n=count, s=steps: [scene.draw("merged", s) for _ in range(n)],
                "merge": lambda n=count, s=steps: scene.draw_ours("merge", s, n),
            }
            times = take_turns(candidates, 1 if quick or count > 1 else 2, device, around={"merged": merged})
            ratio = format_spread(find_ratios(times, "merge", "merged"), 3)
            rows.append([title, ratio, *(f"{median(times[name]):.2f} s" for name in ("merge", "merged"))])
            if count == 1:
                said = check_images(scene, ("merge",))
        first, *others = [scene.trails[name][-1] for name in scene.trails if name.split()[0] == "merge"]
        assert len(others) == COUNT - 1
        alike = all(torch.equal(first, other) for other in others)
        assert alike or device.type != "cpu", "the images of a batch count, of one seed, differ"
    how = "are equal bit for bit" if alike else "differ by rounding"
    return [*make_table(HEAD, rows), "", f"{said} The {COUNT} images of one seed {how}."]
