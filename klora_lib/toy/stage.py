"""What every stage of the training shares: its log, its clock, and a state on disk from which a cut-off run goes on."""

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

SEED = 20250218  # of everything: pictures, first weights, noise
FORMS = {"vae": 1, "base": 2, "lora": 3, "judge": 4, "check": 5}  # which seeds a stage draws its pictures from


@dataclass
class Stage:
    """One stage under way. folder: where its state and the log lie; every: steps between two states on disk."""

    name: str
    folder: Path
    every: int = 200
    seconds: float = 0.0  # spent by earlier runs
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    @property
    def spent(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def resume(self) -> dict[str, Any] | None:
        """What `save` wrote last; None where there is nothing."""
        if not self.state.exists():
            return None
        found: dict[str, Any] = torch.load(self.state, weights_only=True)
        self.seconds = found["seconds"]
        return found

    def save(self, step: int, **parts: Any) -> None:
        """Write the state as one file that is either the old or the new one."""
        draft = self.state.with_suffix(".draft")
        torch.save({"step": step, "seconds": self.spent, **parts}, draft)
        os.replace(draft, self.state)

    def log(self, step: int, **facts: float | str) -> None:
        """One line of the log, also shown."""
        line = json.dumps({"stage": self.name, "step": step, "seconds": round(self.spent, 1), **rounded(facts)})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def rounded(facts: Mapping[str, float | str]) -> dict[str, float | str]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}


def rate(step: int, steps: int, highest: float, warm: int = 100) -> float:
    """The learning rate: up in a straight line, down with a cosine."""
    if step < warm:
        return highest * (step + 1) / warm
    return highest * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm)))))


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def as_input(pictures: NDArray[np.uint8]) -> Tensor:
    """[n, 64, 64, 3] in 0…255 -> [n, 3, 64, 64] in −1…1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
