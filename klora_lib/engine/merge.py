"""Merge: the weight carries base + Δ of the choice.  A step without a switch costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics import out_of_memory, with_index
from .memory import MemoryBudget, host_copy
from .site import Load, Loads, Site

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Factors:
    """The two factors of a load, on the compute device where there is room for them, else as the file has them."""

    def __init__(self, load: Load, device: torch.device, budget: MemoryBudget):
        self.load = load
        self.device = device
        self.budget = budget
        self.taken = 0  # bytes of the budget
        self.low_rank = load.delta.factors()
        if self.low_rank is not None:
            up, down, scale = self.low_rank  # up: [out, rank], down: [rank, in·kh·kw]
            if budget.take(up.nbytes + down.nbytes):
                self.taken = up.nbytes + down.nbytes
                self.low_rank = up.to(device), down.to(device), scale

    def add_to(self, total: Tensor, out: Tensor) -> None:
        """out ← total + w·scale·up@down, both [out, in·kh·kw] in fp32 or fp64; ``total`` may be ``out`` itself."""
        assert self.low_rank is not None
        up, down, scale = self.low_rank
        up, down = (t.to(self.device).to(out.dtype) for t in (up, down))  # narrow on its way, wide where it computes
        torch.addmm(total, up, down, alpha=scale * self.load.weight, out=out)

    def release(self) -> None:
        self.budget.give_back(self.taken)
        self.taken = 0


class Merged:
    """One site whose weight we rewrite.  The backup is taken when the first change is due, and is exact."""

    def __init__(self, site: Site, loads: Loads, device: torch.device, budget: MemoryBudget):
        self.site = site
        self.loads = loads
        self.device = with_index(device)
        self.budget = budget
        self.taken = 0  # bytes of the budget that the backups hold
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
        """In the weight itself where it is fp32 on the compute device, else in one fp32 copy of it."""
        target = self.site.part(self.site.module.weight.detach())
        rows, work = target.shape[0], wide_type(target)
        ours = target.dtype == work and target.device == self.device and target.is_contiguous()
        out = target.view(rows, -1) if ours else self.widened(backup, work).view(rows, -1)
        if ours and backup.device == self.device:
            base = backup.view(rows, -1)
        else:
            base = out
            if ours:
                out.copy_(backup.view(rows, -1))
        columns = self.loads.columns
        out_part, total = out[:, :columns], base[:, :columns]
        ready = [self.ready(load) for load in chosen]
        dense = [r.load for r in ready if r.low_rank is None]
        updates = [load.delta.update(total.float()) for load in dense]  # each from the untouched base, before any is added
        for load, update in zip(dense, updates):
            total = torch.add(total, update, alpha=load.weight, out=out_part)
        for factors in ready:
            if factors.low_rank is not None:
                factors.add_to(total, out_part)
                total = out_part
        if not ours:
            target.copy_(out.view(target.shape).to(target.dtype) if target.device != self.device else out.view(target.shape))

    def widened(self, backup: Tensor, work: torch.dtype) -> Tensor:
        """A contiguous copy of ``backup`` on the compute device, of type ``work``; never the backup itself."""
        return torch.empty(backup.shape, dtype=work, device=self.device).copy_(backup.to(self.device))

    def write_bias(self, chosen: list[Load], backup: Tensor) -> None:
        target = self.site.part(self.site.module.bias.detach())
        total = backup.to(target.device).to(wide_type(backup))
        for load in chosen:
            if load.delta.bias is not None:
                total = total + load.weight * load.delta.bias.to(target.device).to(total.dtype)
        target.copy_(total)

    def ready(self, load: Load) -> Factors:
        if id(load) not in self.factors:
            self.factors[id(load)] = Factors(load, self.device, self.budget)
        return self.factors[id(load)]

    def back_up(self) -> None:
        """Only what will be written: a bias alone must not hold a weight that another unit may be changing."""
        if self.backed_up:
            return
        module = self.site.module
        if self.loads.with_weight or module.weight.dim() == 1:
            self.weight = self.copied(self.site.part(module.weight.detach()))
        if self.loads.with_bias and getattr(module, "bias", None) is not None:  # a norm without a bias gets none
            self.bias = self.copied(self.site.part(module.bias.detach()))
        self.backed_up = True

    def copied(self, tensor: Tensor) -> Tensor:
        """A contiguous copy beside ``tensor``, or in host memory where the device has no room for it."""
        if tensor.device.type == "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        if self.budget.take(tensor.nbytes):
            try:
                copy = tensor.clone(memory_format=torch.contiguous_format)
                self.taken += tensor.nbytes
                return copy
            except RuntimeError as e:
                self.budget.give_back(tensor.nbytes)
                if not out_of_memory(e):
                    raise
        return host_copy(tensor)

    def wait(self) -> None:
        """A weight in host memory may still be on its way to the device (copies from pinned memory return at once)."""
        if self.device.type in ("cuda", "xpu") and self.site.module.weight.device.type == "cpu":
            getattr(torch, self.device.type).synchronize(self.device)

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
        for factors in self.factors.values():
            factors.release()
        self.factors.clear()
        self.budget.give_back(self.taken)
        self.taken = 0

    def written(self) -> list[Tensor]:
        pairs = ((self.weight, "weight"), (self.bias, "bias"))
        return [getattr(self.site.module, name) for backup, name in pairs if backup is not None]

    def attached(self) -> bool:
        return True  # a written weight needs nothing else


def wide_type(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64.  (torch does not promote fp8, in which a norm's weight may be.)"""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
