"""A device that is not there: tensors that say "cuda:0" and keep real numbers, memory that ends, and what a host waits for.

``with pretend("cuda", capacity=1 << 20) as device`` makes every torch call with that device work on a CPU build of torch.
Stricter than the real one where that finds more: whatever mixes devices raises, a copy that has not arrived must not be
touched, and a product is as coarse as TF32 or autocast would make it where either is on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .away import Away, Block, list_tensors, map_tensors, numbers

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.mm.out, aten.addmm.out, aten.convolution.default}
WAITING = {
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default,
}  # fmt: skip
OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
TEXTS = {  # what each allocator says in a RuntimeError; CUDA and XPU have a type of their own
    "mps": "MPS backend out of memory (MPS allocated: {live} bytes, max allowed: {capacity} bytes)",
    "privateuseone": "Could not allocate tensor with {size} bytes. There is not enough GPU video memory available!",
}


class Device:
    """Memory and clock of one pretended device.

    live, peak: bytes.  waits: how often the host waited for it.  copied: (bytes, dtype there, dtype here) of every copy
    between host and device.  cached: bytes that torch keeps of what it no longer uses.
    """

    def __init__(self, kind: str, capacity: float, cached: int):
        self.device = torch.device(kind, 0)
        self.capacity = capacity
        self.cached = cached
        self.live = self.peak = self.waits = 0
        self.autocast = False
        self.copied: list[tuple[int, torch.dtype, torch.dtype]] = []
        self.blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
        self.pinned: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.leaving: dict[int, Tensor] = {}  # host memory that a copy is still reading, by address
        self.arriving: dict[int, Tensor] = {}  # host memory that a copy is still writing

    def freed(self, size: int) -> None:
        self.live -= size

    def wait(self, *_: Any, **__: Any) -> None:
        self.waits += 1
        self.leaving.clear()
        self.arriving.clear()

    # --- memory ---

    def wrap(self, inner: Tensor) -> Away:
        """``inner`` as a tensor of this device.  Raises what the device's allocator raises where its memory ends."""
        storage = inner.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        block = self.blocks.get(address) if size else None
        if block is None and size:
            if self.live + size > self.capacity:
                raise self.full(size)
            block = self.blocks[address] = Block(self, size)
        return Away(inner, self, block)

    def full(self, size: int) -> Exception:
        kind = self.device.type
        text = TEXTS.get(kind, f"{kind.upper()} out of memory. Tried to allocate {{size}} bytes.")
        error = RuntimeError if kind in TEXTS else OutOfMemory
        return error(text.format(size=size, live=self.live, capacity=self.capacity))

    def reserved(self, *_: Any) -> int:
        return int(self.live + min(self.cached, self.capacity - self.live))

    def figures(self, device: Any = None) -> tuple[int, int]:
        """As torch 2.1 to 2.3: a device without an index is refused."""
        if isinstance(device, (str, torch.device)) and torch.device(device).index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return int(self.capacity) - self.reserved(), int(self.capacity)

    # --- operations ---

    def operate(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = list_tensors(args, kwargs)
        away = [t for t in given if isinstance(t, Away)]
        host = [t for t in given if not isinstance(t, Away)]
        if func is aten.copy_.default and away and host:
            return self.copy(*args, **kwargs)
        self.check_arrived(func, host, args)
        if not away:
            return func(*args, **kwargs)
        indices = func in (aten.index.Tensor, aten.index_put_.default)
        if any(t.dim() for t in host) and not indices:
            two = f"{self.device} and cpu"
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two devices, {two}! ({func})")
        if func in WAITING or (indices and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.wait()
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
        inside, inside_kw = map_tensors(numbers, args), {k: map_tensors(numbers, v) for k, v in kwargs.items()}
        if func in PRODUCTS and (coarse := self.coarse()):
            inside = tuple(coarse(t) if isinstance(t, Tensor) and t.dtype == torch.float32 else t for t in inside)
        known = {id(t.inner): t for t in away}
        out = func(*inside, **inside_kw)
        return map_tensors(lambda t: known[id(t)] if id(t) in known else self.wrap(t), out)

    def coarse(self) -> Callable[[Tensor], Tensor] | None:
        """What the device would do to the factors of a product in fp32, as it is set now."""
        if self.autocast:
            return lambda t: t.half().float()
        if self.device.type == "cuda" and tf32_is_on():
            return lambda t: (t.view(torch.int32) & ~0x1FFF).view(torch.float32)  # ten bits
        return None

    def check_arrived(self, func: Any, host: list[Tensor], args: Any) -> None:
        """Memory of the host that a copy is still reading must not be written; what it is still writing, not touched."""
        if not self.leaving and not self.arriving:
            return
        written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        targets = [a for a, w in zip(args, written) if w and isinstance(a, Tensor) and not isinstance(a, Away)]
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        for t in host:
            address = t.untyped_storage().data_ptr()
            early = address in self.arriving and (targets or not aliases)
            if early or (address in self.leaving and any(t is w for w in targets)):
                raise AssertionError(f"{func} touches memory that is still on its way to or from {self.device}")

    # --- copies ---

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """``copy_`` between host and device."""
        there, here = (target, source) if isinstance(target, Away) else (source, target)
        assert isinstance(there, Away)
        self.count(there.dtype, here, non_blocking, to_device=isinstance(target, Away))
        if isinstance(target, Away):
            target.inner.copy_(source)
        else:
            target.copy_(there.inner)
        return target

    def count(self, dtype: torch.dtype, here: Tensor, non_blocking: bool, to_device: bool) -> None:
        self.copied.append((here.numel() * min(dtype.itemsize, here.dtype.itemsize), dtype, here.dtype))
        pinned = any(here.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for t in self.pinned)
        if not non_blocking or not pinned:  # a copy to or from pageable memory waits for what the device has to do
            self.wait()
        else:
            on_the_way = self.leaving if to_device else self.arriving
            on_the_way[here.untyped_storage().data_ptr()] = here

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``Tensor.to``."""
        device, dtype, rest = kwargs.pop("device", None), kwargs.pop("dtype", None), []
        for arg in args:
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, torch.dtype):
                dtype = arg
            elif isinstance(arg, bool):
                rest.append(arg)
            elif arg is not None:
                device = arg
        options = {**dict(zip(("non_blocking", "copy"), rest)), **kwargs}
        away, dtype = isinstance(tensor, Away), dtype or tensor.dtype
        target = tensor.device if device is None else self.named(device)
        non_blocking = options.get("non_blocking", False)
        if target == tensor.device:
            return Tensor.to(tensor, dtype=dtype, **options)
        if not away and target == self.device:
            made = self.wrap(tensor.to(dtype=dtype, copy=True))
            self.count(dtype, tensor, non_blocking, to_device=True)
            return made
        if away and target.type == "cpu":
            moved = tensor.inner.to(dtype=dtype, copy=True)  # type: ignore[attr-defined]
            self.count(tensor.dtype, moved, non_blocking, to_device=False)
            return moved
        raise RuntimeError(f"there is no {target} here, only {self.device} and cpu")

    def named(self, device: Any) -> torch.device:
        """As the real ones answer: a device without an index is the first."""
        device = torch.device(self.device.type, device) if isinstance(device, int) else torch.device(device)
        return self.device if device.type == self.device.type and device.index in (None, 0) else device

    def pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        self.pinned.add(pinned)
        return pinned

    def ours(self, device: Any) -> bool:
        return device is not None and not isinstance(device, Tensor) and self.named(device) == self.device


class Operations(TorchDispatchMode):
    _should_skip_dynamo = classmethod(lambda cls: False)  # a guard against compiling takes as long as an operation
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
            args = map_tensors(numbers, args)
        if kwargs.get("pin_memory"):
            return machine.pin(func(*args, **{**kwargs, "pin_memory": False}))
        if machine.ours(kwargs.get("device")):
            with torch._C.DisableTorchFunction():
                return machine.wrap(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def autocast_is_on(kind: str) -> bool:
    if kind == "cuda":
        return torch.is_autocast_enabled()
    try:
        return torch.is_autocast_enabled(kind)
    except (TypeError, RuntimeError):  # torch before 2.4, or a device without autocast
        return False


def tf32_is_on() -> bool:
    """By whichever of torch's two switches."""
    matmul = torch.backends.cuda.matmul
    try:
        if matmul.allow_tf32:
            return True
    except RuntimeError:  # torch 2.9: the new switch was used
        pass
    try:
        return bool(matmul.fp32_precision == "tf32")
    except (AttributeError, AssertionError):  # an older torch
        return False


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
