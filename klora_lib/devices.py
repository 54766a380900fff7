"""Devices: which one is meant, how numbers get there, what a full one says.  Nothing else asks torch's device modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

UNKNOWN = 512 << 20  # bytes taken to be free on a device that does not tell
FULL = (  # what torch's allocators say in a RuntimeError: CUDA and XPU, MPS, DirectML, the CPU's
    "out of memory", "not enough memory", "not enough gpu video memory", "can't allocate memory",
    "could not allocate tensor", "out_of_memory", "out_of_device_memory", "out_of_resources", "alloc_failed", "alloc_failed",
)  # fmt: skip


def resolved(device: torch.device | str) -> torch.device:
    """``device`` as its tensors name it: a host may say "cuda" and mean the current one, whose tensors say "cuda:0"."""
    device = torch.device(device)
    if ":" in str(device) or device.type in ("cpu", "meta"):
        return device
    owner = torch_module(device)
    there = hasattr(owner, "current_device") and getattr(owner, "is_available", lambda: False)()
    return torch.device(device.type, owner.current_device() if there else 0)


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both name one device, with or without its index."""
    return one.type == other.type and (one == other or resolved(one) == resolved(other))


def torch_module(device: torch.device) -> Any:
    """torch.cuda and its like; None where this torch has none for the device."""
    return getattr(torch, device.type, None)


# --- memory ---


def free_bytes(device: torch.device) -> float:
    """What can be allocated on ``device`` now, what torch itself keeps in reserve included; host memory has no bound here.

    Apple's chips have one memory for all: what counts is how much of it Metal recommends to use.  A device that does not
    tell (DirectML) is taken to have UNKNOWN free: on a card of 8 GB no more than a sixteenth is put at risk.  The factors of
    a usual pair fit into that, and they are what every switch needs; backups of the weights lie in host memory, and cost a
    switch one copy more.
    """
    if device.type == "cpu":
        return float("inf")
    device, owner = resolved(device), torch_module(device)
    try:
        if device.type == "mps":
            return float(owner.recommended_max_memory() - owner.current_allocated_memory())
        free = float(owner.mem_get_info(device)[0])
    except (AttributeError, RuntimeError):  # no such function, or one that this driver has no answer for
        return UNKNOWN
    if hasattr(owner, "memory_reserved") and hasattr(owner, "memory_allocated"):
        free += owner.memory_reserved(device) - owner.memory_allocated(device)
    return free


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ended, on any device or the host's own."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):  # the same as torch.OutOfMemoryError, since 2.5
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in FULL)


# --- copies ---


def moved(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    """``tensor`` on ``device`` (where it is, when None) in ``dtype``; itself where it is so already.

    Numbers cross in their own type where that is the narrower, and are widened on the device.
    From pinned memory a copy returns before it has happened: what it reads must stay as it is until then.
    """
    device = tensor.device if device is None else torch.device(device)
    crosses = device.type != tensor.device.type
    narrow = dtype if tensor.dtype not in carried(device) or tensor.dtype.itemsize > dtype.itemsize else tensor.dtype
    if not crosses or device.type == "cpu" or narrow == dtype:
        return tensor.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")
    return tensor.to(device, non_blocking=device.type == "cuda").to(dtype)


def carried(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types that every device of this kind knows."""
    if device.type in ("cuda", "xpu"):
        return torch.float16, torch.bfloat16, torch.float32, torch.float64
    return torch.float16, torch.float32


def pinned(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` in host memory from which a CUDA device reads without the host waiting.

    Where the system gives no more of that, in plain memory.  From a device the copy may still be under way on return: its
    own stream may use it at once, the host after a synchronisation.
    """
    try:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:
        return tensor.to("cpu", copy=True)
    return copy.copy_(tensor, non_blocking=True)


def mapped(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``act`` done to each tensor in it: of a tuple, of a LoRA module and the modules inside that."""
    if isinstance(value, Tensor):
        return act(value)
    if isinstance(value, tuple):
        return tuple(mapped(each, act) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(getattr(value, f.name), act) for f in fields(value)})
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``: of a tuple, of a LoRA module and the modules inside that."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def size_of(value: Any) -> int:
    """Bytes of the tensors in it."""
    return sum(t.nbytes for t in tensors_in(value))
