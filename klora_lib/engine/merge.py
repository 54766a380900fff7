"""Merge: the weight carries base + Δ of the choice.  A step without a switch costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import copy_to_pinned, count_bytes, is_same_device, list_dtypes, map_tensors, move
from .memory import Claims, MemoryBudget
from .site import Load, Loads, Site

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Factors:
    """One load made ready for switching: its tensors on the compute device, or in host memory where that has no room."""

    def __init__(self, load: Load, device: torch.device, claims: Claims):
        self.load = load
        self.device = device
        delta, low_rank = load.delta, load.delta.factors()
        parts = (delta if low_rank is None else None, low_rank, delta.bias)
        if device.type == "cpu" or claims.take(count_bytes(parts)):
            dtypes = list_dtypes(device)
            parts = map_tensors(parts, lambda t: move(t, device, t.dtype if t.dtype in dtypes else torch.float32))
        elif device.type == "cuda" and claims.pin(count_bytes(parts)):
            parts = map_tensors(parts, copy_to_pinned)
        self.delta, self.low_rank, self.bias = parts

    def add_to(self, total: Tensor, base: Tensor, out: Tensor) -> None:
        """out ← total + w·Δ(base), all [out, in·kh·kw] in fp32 or fp64; the three may be one and the same."""
        if self.low_rank is None:
            assert self.delta is not None
            torch.add(total, self.delta.update(base.float()), alpha=self.load.weight, out=out)
            return
        up, down, scale = self.low_rank  # up: [out, rank], down: [rank, in·kh·kw]
        up, down = move(up, self.device, base.dtype), move(down, self.device, base.dtype)
        torch.addmm(total, up, down, alpha=scale * self.load.weight, out=out)


class Merged:
    """One site whose weight we rewrite.  The backup is taken when the first change is due, and is exact."""

    def __init__(self, site: Site, loads: Loads, device: torch.device, budget: MemoryBudget):
        self.site = site
        self.loads = loads
        self.device = device
        self.claims = Claims(budget)
        self.weight: Tensor | None = None  # backups, of the site's part
        self.bias: Tensor | None = None
        self.backed_up = False
        self.factors: dict[int, Factors] = {}

    def show(self, mask: int) -> None:
        """Weight ← base + Σ w·Δ of the loads in ``mask``, from the exact backup, in fp32, rounded once."""
        chosen = self.loads.chosen(mask)
        if not chosen:
            self.restore()
            return
        self.wait()
        self.back_up()
        if self.weight is not None:
            self.write_weight(chosen, self.weight)
        if self.bias is not None:
            self.write_bias(chosen, self.bias)

    def write_weight(self, chosen: list[Load], backup: Tensor) -> None:
        """The sum is made in the weight itself where it is wide enough, else in one wide copy.

        Updates that ask for the base come first: only a second one of these needs a base that nothing has been added to.
        """
        target, source = self.site.part(self.site.module.weight.detach()), backup
        here = is_same_device(target.device, self.device)
        if here and not is_same_device(backup.device, target.device):
            put_back(target, backup)  # which needs no memory of the device's beside it
            source = target
        wide = move(source.contiguous(), self.device, wide_type(target))
        base, columns = wide.view(target.shape[0], -1), self.loads.columns
        whole = columns in (None, base.shape[1])
        in_place = here and target.dtype == base.dtype and target.is_contiguous() and whole
        out = target.view(base.shape) if in_place else base if wide is not source else base.clone()
        chosen = sorted(chosen, key=lambda load: not load.delta.asks_base)
        if (out is base or wide is target) and sum(load.delta.asks_base for load in chosen) > 1:
            base = base.clone()
        total, narrow = base[:, :columns], base[:, :columns]
        for load in chosen:
            self.ready(load).add_to(total, narrow, out[:, :columns])
            total = out[:, :columns]
        if not in_place:
            put(target, out.view(target.shape))

    def write_bias(self, chosen: list[Load], backup: Tensor) -> None:
        target = self.site.part(self.site.module.bias.detach())
        total = move(backup, self.device, wide_type(backup))
        for load in chosen:
            factors = self.ready(load)
            if factors.bias is not None:
                total = total + load.weight * move(factors.bias, self.device, total.dtype)
            if load.delta.bias_factor is not None:
                own = move(backup, self.device, total.dtype)
                total = total + load.weight * move(load.delta.bias_factor, self.device, total.dtype) * own
        put(target, total)

    def ready(self, load: Load) -> Factors:
        if id(load) not in self.factors:
            self.factors[id(load)] = Factors(load, self.device, self.claims)
        return self.factors[id(load)]

    def back_up(self) -> None:
        """Only what will be written: a bias alone must not hold a weight that another unit may be changing."""
        if self.backed_up:
            return
        module = self.site.module
        if self.loads.with_weight or module.weight.dim() == 1:
            self.weight = self.kept(self.site.part(module.weight.detach()))
        with_bias = self.loads.with_bias or self.loads.scales_bias
        if with_bias and getattr(module, "bias", None) is not None:  # a norm without a bias gets none
            self.bias = self.kept(self.site.part(module.bias.detach()))
        self.backed_up = True

    def kept(self, tensor: Tensor) -> Tensor:
        """A copy beside ``tensor``, or in host memory where the device has no room for it."""
        if tensor.device.type == "cpu" or self.claims.take(tensor.nbytes):
            return tensor.clone()
        if tensor.device.type == "cuda" and self.claims.pin(tensor.nbytes):
            return copy_to_pinned(tensor)
        return tensor.to("cpu", copy=True)

    def wait(self) -> None:
        """A weight in host memory may still be on its way to the GPU (copies from pinned memory return at once)."""
        if self.device.type == "cuda" and self.site.module.weight.device.type == "cpu":
            torch.cuda.synchronize(self.device)

    def restore(self) -> None:
        if self.backed_up:
            self.wait()
        if self.weight is not None:
            put_back(self.site.part(self.site.module.weight.detach()), self.weight)
        if self.bias is not None:
            put_back(self.site.part(self.site.module.bias.detach()), self.bias)

    def close(self) -> None:
        """The weight bit for bit as it was, and nothing kept."""
        self.restore()
        self.weight = self.bias = None
        self.backed_up = False
        self.factors.clear()
        self.claims.give_back()

    def written(self) -> list[Tensor]:
        pairs = ((self.weight, "weight"), (self.bias, "bias"))
        return [getattr(self.site.module, name) for backup, name in pairs if backup is not None]

    def attached(self) -> bool:
        return True  # a written weight needs nothing else


def put(target: Tensor, result: Tensor) -> None:
    """Where the weight is on another device the result is rounded before it goes there: half of it has to cross."""
    there = target.device.type == result.device.type or target.dtype not in list_dtypes(result.device)
    target.copy_(result if there else result.to(target.dtype))


def put_back(target: Tensor, backup: Tensor) -> None:
    """The host waits only where it could read the weight before it is there."""
    target.copy_(backup, non_blocking=target.device.type == "cuda")


def wide_type(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64.  (torch does not promote fp8, in which a norm's weight may be.)"""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
