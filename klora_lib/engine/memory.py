"""How much of a device's memory may hold what makes switching quick."""

from __future__ import annotations

from typing import Any

import torch

from ..numerics import with_index

UNKNOWN = 256 << 20  # bytes that we take of a device that does not tell what it has


def activations(batch: int, pixels: int) -> int:
    """Bytes that a denoiser call needs beside the weights, for ``batch`` images of so many ``pixels``: an upper estimate.

    1 GiB, and 64 KiB for each of the latent's places (8 × 8 pixels), twice, since guidance stacks two halves.  That is 3 GiB
    for SDXL at 1024 × 1024 and 1.5 GiB for SD1.5 at 512 × 512.
    """
    return (1 << 30) + 2 * batch * (pixels // 64) * (64 << 10)


SAMPLING = activations(1, 1024 * 1024)  # where nobody knows the job


class MemoryBudget:
    """How many bytes of a device may hold backups and updates; what does not fit stays in host memory.

    Whoever takes bytes gives them back.
    """

    def __init__(self, free: float):
        self.free = free

    @classmethod
    def on(cls, device: torch.device, reserve: int = SAMPLING) -> MemoryBudget:
        """What is free on ``device`` now, less ``reserve`` bytes for the sampling itself.

        Host memory has no bound here.  A device that does not tell (DirectML) gives UNKNOWN bytes: the factors of a usual
        LoRA fit, backups of weights stay in host memory.  Too few cost time, too many would end the job.
        """
        if device.type == "cpu":
            return cls(float("inf"))
        free = free_bytes(device)
        return cls(UNKNOWN if free is None else free - reserve)

    def take(self, size: int) -> bool:
        """Claim ``size`` bytes; False where they do not fit."""
        if size > self.free:
            return False
        self.free -= size
        return True

    def give_back(self, size: int) -> None:
        self.free += size


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``, torch's own cache included; None where it does not tell."""
    device = with_index(device)
    module: Any = getattr(torch, device.type, None)
    try:
        if device.type in ("cuda", "xpu"):
            return int(module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device))
        if device.type == "mps":
            return int(module.recommended_max_memory() - module.current_allocated_memory())
    except (AttributeError, RuntimeError, NotImplementedError):  # no such figure in this torch, or from this driver
        pass
    return None


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; pinned where CUDA is, so that the way back is quick."""
    if tensor.device.type == "cuda":
        try:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # no more memory can be pinned
            return tensor.to("cpu", copy=True)
        return pinned.copy_(tensor)
    return tensor.to("cpu", copy=True)
