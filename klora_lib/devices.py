"""Devices: their names, their memory, and copies between them.  No other file uses torch's device modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

UNKNOWN_FREE = 512 << 20  # bytes that we take to be free on a device that does not report its free memory
OUT_OF_MEMORY = (  # texts in the RuntimeErrors of torch's allocators: CUDA and XPU, MPS, DirectML, CPU
    "out of memory", "not enough memory", "not enough gpu video memory", "can't allocate memory",
    "could not allocate tensor", "out_of_memory", "out_of_device_memory", "out_of_resources", "alloc_failed", "alloc_failed",
)  # fmt: skip


def resolve_device(device: torch.device | str) -> torch.device:
    """``device`` with its index, as in ``tensor.device``: a host may write "cuda" for the current device, "cuda:0"."""
    device = torch.device(device)
    if ":" in str(device) or device.type in ("cpu", "meta"):
        return device
    owner = find_torch_module(device)
    available = hasattr(owner, "current_device") and getattr(owner, "is_available", lambda: False)()
    return torch.device(device.type, owner.current_device() if available else 0)


def is_same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both are the same device; either may be without its index."""
    return one.type == other.type and (one == other or resolve_device(one) == resolve_device(other))


def find_torch_module(device: torch.device) -> Any:
    """torch.cuda, torch.xpu, …; None if this version of torch has no module for the device."""
    return getattr(torch, device.type, None)


# --- memory ---


def measure_free_bytes(device: torch.device) -> float:
    """Bytes that can be allocated on ``device`` now, with the memory that torch holds in reserve; infinite for the CPU.

    Apple's chips share one memory between CPU and GPU: there it is what Metal recommends to use.  For a device that does
    not report it (DirectML) it is UNKNOWN_FREE, which is only a sixteenth of a card with 8 GB.  The factors of a usual pair,
    which every switch needs, fit into that.  Backups of weights are then in host memory, and a switch needs one more copy.
    """
    if device.type == "cpu":
        return float("inf")
    device, owner = resolve_device(device), find_torch_module(device)
    try:
        if device.type == "mps":
            return float(owner.recommended_max_memory() - owner.current_allocated_memory())
        free = float(owner.mem_get_info(device)[0])
    except (AttributeError, RuntimeError):  # there is no such function, or the driver does not support it
        return UNKNOWN_FREE
    if hasattr(owner, "memory_reserved") and hasattr(owner, "memory_allocated"):
        free += owner.memory_reserved(device) - owner.memory_allocated(device)
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is not enough memory, on a device or in the host."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):  # called torch.OutOfMemoryError since torch 2.5
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


# --- copies ---


def move(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    """``tensor`` on ``device`` (None: where it is) in ``dtype``; the same tensor if nothing has to change.

    If the tensor's type is narrower than ``dtype``, it is copied in its type and converted on the device.
    A copy from pinned memory may still run when this returns: the tensor must not be changed until it has finished.
    """
    device = tensor.device if device is None else torch.device(device)
    other_device = device.type != tensor.device.type
    narrow = dtype if tensor.dtype not in list_dtypes(device) or tensor.dtype.itemsize > dtype.itemsize else tensor.dtype
    if not other_device or device.type == "cpu" or narrow == dtype:
        return tensor.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")
    return tensor.to(device, non_blocking=device.type == "cuda").to(dtype)


def list_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The float types that all devices of this type support."""
    if device.type in ("cuda", "xpu"):
        return torch.float16, torch.bfloat16, torch.float32, torch.float64
    return torch.float16, torch.float32


def copy_to_pinned(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` in pinned host memory, from which a CUDA device can read while the host continues.

    If the system gives no more pinned memory, the copy is in normal memory.  A copy from a device may still run when this
    returns: the device's own stream may use it at once, the host only after a synchronisation.
    """
    try:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:
        return tensor.to("cpu", copy=True)
    return copy.copy_(tensor, non_blocking=True)


def map_tensors(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with each tensor in it replaced by ``act(tensor)``: in tuples, and in LoRA modules and modules in these."""
    if isinstance(value, Tensor):
        return act(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(each, act) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), act) for f in fields(value)})
    return value


def find_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``: in tuples, and in LoRA modules and modules in these."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from find_tensors(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from find_tensors(getattr(value, field.name))


def count_bytes(value: Any) -> int:
    """Bytes of all tensors in ``value``."""
    return sum(t.nbytes for t in find_tensors(value))
