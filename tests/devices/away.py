"""Tensors on a pretended device: what they say of themselves, and the piece of memory that they are in."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

if TYPE_CHECKING:
    from .pretend import Device


class Block:
    """One piece of the device's memory; it is given back when the last tensor in it goes."""

    def __init__(self, device: Device, size: int):
        self.size = size
        device.live += size
        device.peak = max(device.peak, device.live)
        weakref.finalize(self, device.freed, size)


class Away(Tensor):
    """A tensor on a pretended device.  ``inner``: its numbers."""

    inner: Tensor
    machine: Device
    block: Block | None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, machine: Device, block: Block | None) -> Away:
        made = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(inner.is_inference()):  # a view of an ordinary tensor is one, in inference mode too
            self = Tensor._make_wrapper_subclass(cls, inner.size(), layout=inner.layout, device="cpu", **made)  # type: ignore[attr-defined]
        self.inner, self.machine, self.block = inner, machine, block
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.machine.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.machine.device.type == "cuda"

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inner!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = next(t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Away))
        return here.machine.operate(func, args, kwargs or {})


def numbers(tensor: Tensor) -> Tensor:
    """What is in it, in host memory, at no cost."""
    return tensor.inner if isinstance(tensor, Away) else tensor
