"""How much memory of a device, and how much pinned host memory, we may use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..devices import is_out_of_memory, is_same_device, measure_free_bytes
from ..errors import HostError

BASE, PER_PIXEL = 1 << 30, 64 << 10  # bytes that a denoiser's forward needs: at all, and for a pixel of the latent image
PINNED = 1 << 30  # bytes; the system cannot use pinned memory for anything else, and torch keeps it for as long as it runs


class MemoryBudget:
    """How many bytes of a device may hold backups and updates; the rest stays in host memory.

    pinned: how many bytes of host memory may be pinned.  A CUDA device reads pinned memory while the CPU goes on.
    """

    def __init__(self, free: float, pinned: float = 0):
        self.free = free
        self.pinned = pinned
        self.scratch: Tensor | None = None  # bytes, lent for one computation at a time

    @classmethod
    def on(cls, device: torch.device, reserve: float) -> MemoryBudget:
        """The free memory of ``device`` now, minus ``reserve`` bytes for sampling.  Host memory is not limited."""
        return cls(measure_free_bytes(device) - reserve, PINNED if device.type == "cuda" else 0)

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory to compute in, until the next call: fresh memory for every switch would take longer than the switch.

        It is kept and counted.  Where it does not fit, it is of the memory that is left to the sampling, and is not kept.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.scratch is not None and (self.scratch.nbytes < size or not is_same_device(self.scratch.device, device)):
            self.drop_scratch()
        if self.scratch is None:
            fresh = torch.empty(size, dtype=torch.uint8, device=device)
            if size > self.free:
                return fresh.view(dtype).view(shape)
            self.free -= size
            self.scratch = fresh
        return self.scratch[:size].view(dtype).view(shape)

    def drop_scratch(self) -> None:
        if self.scratch is not None:
            self.free += self.scratch.nbytes
        self.scratch = None


class Claims:
    """The part of a budget that one actor uses.  It gives all of it back at once."""

    def __init__(self, budget: MemoryBudget):
        self.budget = budget
        self.taken = self.locked = 0  # bytes of the device, of pinned memory

    def take(self, size: int) -> bool:
        """Claim ``size`` bytes of the device; False if they do not fit."""
        if size > self.budget.free:
            return False
        self.budget.free -= size
        self.taken += size
        return True

    def pin(self, size: int) -> bool:
        """The same for pinned host memory."""
        if size > self.budget.pinned:
            return False
        self.budget.pinned -= size
        self.locked += size
        return True

    def give_back(self) -> None:
        self.budget.free += self.taken
        self.budget.pinned += self.locked
        self.taken = self.locked = 0


def estimate_sampling_bytes(pixels: int) -> int:
    """Bytes that a denoiser's forward needs in addition to its weights.

    Args: pixels: of all latent images in one call; guidance doubles them.
    An image of 512×512 (64×64 latent pixels) gives 1.5 GiB, 1024×1024 gives 3 GiB: about what SD1.5 and SDXL need in half
    precision with plain attention.
    """
    return BASE + PER_PIXEL * pixels


@contextmanager
def report_no_memory(device: torch.device, what: str) -> Iterator[None]:
    """While open, an out-of-memory error becomes a HostError whose sentence says what the memory was needed for."""
    try:
        yield
    except Exception as e:
        if is_out_of_memory(e):
            raise HostError(
                f"{device} has no memory left {what}; take a smaller image or batch, or the engine bypass"
            ) from e
        raise
