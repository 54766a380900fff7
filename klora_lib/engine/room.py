"""How much of a GPU's memory we may use."""

from __future__ import annotations

import torch

SPARE = 3 << 30  # bytes of a GPU left to the sampler's activations


class Room:
    """How many bytes of a device may hold backups and updates; what no longer fits stays in host memory."""

    def __init__(self, free: float):
        self.free = free

    @classmethod
    def on(cls, device: torch.device) -> Room:
        """What is free on ``device`` now (torch's own cache included), less SPARE; host memory has no bound here."""
        if device.type != "cuda":
            return cls(float("inf"))
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return cls(torch.cuda.mem_get_info(device)[0] + cached - SPARE)

    def take(self, size: int) -> bool:
        """Claim ``size`` bytes; False where they do not fit."""
        if size > self.free:
            return False
        self.free -= size
        return True

    def give_back(self, size: int) -> None:
        self.free += size
