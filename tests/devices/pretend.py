"""A device that is not there: tensors that say "cuda:0" and keep real numbers, memory that ends, and what a host waits for.

``with pretend("cuda", capacity=1 << 20) as device`` makes every torch call with that device work on a CPU build of torch.
Stricter than the real one where that finds more: whatever mixes devices raises, a copy that has not arrived must not be
touched, and a product is as coarse as TF32 or autocast would make it where either is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .machine import Away, Device, OutOfMemory, autocast_is_on

__all__ = ["Away", "Device", "OutOfMemory", "numbers", "pretend", "put"]


class Operations(TorchDispatchMode):
    def __init__(self, machine: Device):
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.machine.operate(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What torch's own C++ would ask a device guard for: moving, making, pinning."""

    def __init__(self, machine: Device):
        super().__init__()
        self.machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, machine = dict(kwargs or {}), self.machine
        machine.autocast = autocast_is_on(machine.device.type)  # below, torch hides it
        if func is Tensor.to:
            return machine.to(*args, **kwargs)
        if func is Tensor.cpu:
            return machine.to(args[0], "cpu")
        if func is Tensor.pin_memory:
            return machine.pin(args[0])
        if func is Tensor.is_pinned:
            return args[0] in machine.pinned
        if "device" in kwargs and not machine.ours(kwargs["device"]):  # one like it, in host memory
            args = tree_map(numbers, args)
        if kwargs.get("pin_memory"):
            return machine.pin(func(*args, **{**kwargs, "pin_memory": False}))
        if machine.ours(kwargs.get("device")):
            with torch._C.DisableTorchFunction():
                return machine.wrap(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def patches(machine: Device) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, replacement): what torch tells of the device's memory."""
    kind = machine.device.type
    owner = getattr(torch, kind, None)
    told: dict[str, Any] = {}
    if kind in ("cuda", "xpu"):
        told = {
            "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
            "current_device": lambda: 0, "mem_get_info": machine.figures, "memory_reserved": machine.reserved,
            "memory_allocated": lambda *_: machine.live, "synchronize": machine.wait,
        }  # fmt: skip
    if kind == "mps":
        told = {
            "recommended_max_memory": lambda: int(machine.capacity), "current_allocated_memory": lambda: machine.live,
            "driver_allocated_memory": machine.reserved, "synchronize": machine.wait,
        }  # fmt: skip
    yield from ((owner, name, value) for name, value in told.items() if owner is not None)


@contextmanager
def pretend(kind: str, capacity: float = 1 << 40, cached: int = 0) -> Iterator[Device]:
    """Args: kind: "cuda", "xpu", "mps", "privateuseone".  capacity: bytes.  cached: of them, in torch's cache."""
    machine = Device(kind, capacity, cached)
    with ExitStack() as stack:
        for owner, name, value in patches(machine):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        stack.enter_context(Operations(machine))
        stack.enter_context(Functions(machine))
        yield machine


def put(module: nn.Module, device: Device) -> nn.Module:
    """``module.to(device)``: the module itself, its parameters new."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                moved = device.to(parameter.detach(), device.device)
                part._parameters[name] = nn.Parameter(moved, requires_grad=False)
    return module


def numbers(tensor: Tensor) -> Tensor:
    """What is in it, in host memory, at no cost."""
    return tensor.inner if isinstance(tensor, Away) else tensor
