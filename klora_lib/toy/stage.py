"""What all stages of the training share: a log, a clock, and a state on disk with which an interrupted run continues."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SEED = 20250218  # for all random numbers: pictures, initial weights, noise
STREAMS = {"vae": 1, "base": 2, "lora": 3, "judge": 4, "check": 5}  # with SEED: the seed of each stage's pictures


@dataclass
class Stage:
    """One running stage. folder: of its state and the log. every: number of steps after which the state is saved."""

    name: str
    folder: Path
    every: int = 200
    seconds: float = 0.0  # that earlier runs took
    started: float = field(default_factory=time.monotonic)

    @property
    def state_path(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def resume(self) -> dict[str, Any] | None:
        """The state that `save` wrote last; None if there is none."""
        if not self.state_path.exists():
            return None
        found: dict[str, Any] = torch.load(self.state_path, weights_only=True)
        self.seconds = found["seconds"]
        return found

    def save(self, step: int, **parts: Any) -> None:
        """Write the state. If this is interrupted, the old state stays complete."""
        draft = self.state_path.with_suffix(".draft")
        torch.save({"step": step, "seconds": self.elapsed, **parts}, draft)
        os.replace(draft, self.state_path)

    def log(self, step: int, **facts: float | str) -> None:
        """Write one line into the log, and print it."""
        line = json.dumps({"stage": self.name, "step": step, "seconds": round(self.elapsed, 1), **round_facts(facts)})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def round_facts(facts: Mapping[str, float | str]) -> dict[str, float | str]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}


def find_rate(step: int, steps: int, highest: float, warm: int = 100) -> float:
    """The learning rate at `step`: rises linearly for `warm` steps, then falls with a cosine."""
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm)))))


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def scale_pictures(pictures: NDArray[np.uint8]) -> Tensor:
    """[n, side, side, 3] in 0…255 -> [n, 3, side, side] in −1…1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
