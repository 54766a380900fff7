"""How much of a device's memory we may use, and of the host's memory that a device reads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..devices import is_out_of_memory, measure_free_bytes
from ..errors import HostError

BASE, PER_PIXEL = 1 << 30, 64 << 10  # bytes that a denoiser's forward needs: at all, and for a pixel of the latent image
PINNED = 1 << 30  # bytes; the system cannot use pinned memory for anything else, and torch keeps it for as long as it runs


class MemoryBudget:
    """How many bytes of a device may hold backups and updates; what no longer fits stays in host memory.

    pinned: how many bytes of host memory may be pinned, so that a CUDA device reads them without the host waiting.
    """

    def __init__(self, free: float, pinned: float = 0):
        self.free = free
        self.pinned = pinned

    @classmethod
    def on(cls, device: torch.device, reserve: float) -> MemoryBudget:
        """What is free on ``device`` now, less ``reserve`` bytes that sampling needs; host memory has no bound here."""
        return cls(measure_free_bytes(device) - reserve, PINNED if device.type == "cuda" else 0)


class Claims:
    """What one actor has taken of a budget.  All of it is given back at once."""

    def __init__(self, budget: MemoryBudget):
        self.budget = budget
        self.taken = self.locked = 0  # bytes of the device, of pinned memory

    def take(self, size: int) -> bool:
        """Claim ``size`` bytes of the device; False where they do not fit."""
        if size > self.budget.free:
            return False
        self.budget.free -= size
        self.taken += size
        return True

    def pin(self, size: int) -> bool:
        """The same of pinned host memory."""
        if size > self.budget.pinned:
            return False
        self.budget.pinned -= size
        self.locked += size
        return True

    def give_back(self) -> None:
        self.budget.free += self.taken
        self.budget.pinned += self.locked
        self.taken = self.locked = 0


def sampling_bytes(pixels: int) -> int:
    """What a denoiser's forward needs beside its weights, for ``pixels`` of all latent images that it takes at once.

    With guidance an image is there twice.  1.5 GiB for a picture of 512×512 (64×64 in the latent space), 3 GiB for
    1024×1024: about what SD1.5 and SDXL take in half precision without an attention that saves memory.
    """
    return BASE + PER_PIXEL * pixels


@contextmanager
def memory_told(device: torch.device, what: str) -> Iterator[None]:
    """While open, memory that ends is raised as a HostError: one sentence that says what there is no memory for."""
    try:
        yield
    except Exception as e:
        if is_out_of_memory(e):
            raise HostError(
                f"{device} has no memory left {what}; take a smaller image or batch, or the engine bypass"
            ) from e
        raise
