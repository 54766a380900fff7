"""Merge: the weight carries base + Δ of the choice.  A step without a switch costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .room import Room
from .site import Load, Loads, Site

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Factors:
    """One load made ready for switching: its low-rank factors near the compute device, or its module as it is."""

    def __init__(self, load: Load, device: torch.device, room: Room):
        self.load = load
        self.device = device
        self.low_rank = load.delta.factors()
        if self.low_rank is not None:
            up, down, scale = self.low_rank  # up: [out, rank], down: [rank, in·kh·kw]
            if room.take(up.nbytes + down.nbytes):
                self.low_rank = up.to(device), down.to(device), scale

    def add_to(self, total: Tensor, base: Tensor, out: Tensor) -> None:
        """out ← total + w·Δ(base), all [out, in·kh·kw] in fp32 or fp64; ``total`` may be ``base`` or ``out`` itself."""
        if self.low_rank is None:
            torch.add(total, self.load.delta.update(base.float()), alpha=self.load.weight, out=out)
            return
        up, down, scale = self.low_rank
        up, down = up.to(self.device, base.dtype), down.to(self.device, base.dtype)
        torch.addmm(total, up, down, alpha=scale * self.load.weight, out=out)


class Merged:
    """One site whose weight we rewrite.  The backup is taken when the first change is due, and is exact."""

    def __init__(self, site: Site, loads: Loads, device: torch.device, room: Room):
        self.site = site
        self.loads = loads
        self.device = device
        self.room = room
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
        target = self.site.part(self.site.module.weight.detach())
        work = wide_type(target)
        base = backup.to(self.device, work).reshape(target.shape[0], -1)
        columns = self.loads.columns
        plain = target.dtype == work and target.device == self.device and target.is_contiguous()
        out = target.view(base.shape) if plain and columns in (None, base.shape[1]) else base.clone()
        total, narrow = base[:, :columns], base[:, :columns]
        for load in chosen:
            self.ready(load).add_to(total, narrow, out[:, :columns])
            total = out[:, :columns]
        if out.data_ptr() != target.data_ptr():
            target.copy_(out.view(target.shape))

    def write_bias(self, chosen: list[Load], backup: Tensor) -> None:
        total = backup.to(wide_type(backup))
        for load in chosen:
            if load.delta.bias is not None:
                total = total + load.weight * load.delta.bias.to(total)
            if load.delta.bias_factor is not None:
                total = total + load.weight * load.delta.bias_factor.to(total) * backup.to(total)
        self.site.part(self.site.module.bias.detach()).copy_(total)

    def ready(self, load: Load) -> Factors:
        if id(load) not in self.factors:
            self.factors[id(load)] = Factors(load, self.device, self.room)
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
        beside = tensor.device.type == "cpu" or self.room.take(tensor.nbytes)
        return tensor.clone() if beside else tensor.to("cpu", copy=True)

    def wait(self) -> None:
        """A weight in host memory may still be on its way to the GPU (copies from pinned memory return at once)."""
        if self.device.type == "cuda" and self.site.module.weight.device.type == "cpu":
            torch.cuda.synchronize(self.device)

    def restore(self) -> None:
        if self.backed_up:
            self.wait()
        if self.weight is not None:
            self.site.part(self.site.module.weight.detach()).copy_(self.weight)
        if self.bias is not None:
            self.site.part(self.site.module.bias.detach()).copy_(self.bias)

    def close(self) -> None:
        """The weight bit for bit as it was, and nothing kept."""
        self.restore()
        self.weight = self.bias = None
        self.backed_up = False
        self.factors.clear()

    def written(self) -> list[Tensor]:
        pairs = ((self.weight, "weight"), (self.bias, "bias"))
        return [getattr(self.site.module, name) for backup, name in pairs if backup is not None]

    def attached(self) -> bool:
        return True  # a written weight needs nothing else


def wide_type(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64.  (torch does not promote fp8, in which a norm's weight may be.)"""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
