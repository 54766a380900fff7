"""Tensors on a pretended device: what they say of themselves, and the piece of memory that they are in."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

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
        here = next(t for t in list_tensors(args, kwargs or {}) if isinstance(t, Away))
        return here.machine.operate(func, args, kwargs or {})


def numbers(tensor: Tensor) -> Tensor:
    """What is in it, in host memory, at no cost."""
    return tensor.inner if isinstance(tensor, Away) else tensor


def list_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Those that an operation is given: tensors, and lists of tensors; an operation's schema has nothing deeper."""
    given: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            given.append(value)
        elif isinstance(value, (list, tuple)):
            given += [t for t in value if isinstance(t, Tensor)]
    return given


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with every tensor changed: a tensor, or a list or a tuple with tensors in it."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(map_tensors(change, each) for each in value)
    return value


@contextmanager
def unwatched() -> Iterator[None]:
    """For a reference that is computed in host memory alone: it is quicker where the device does not look on."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield
