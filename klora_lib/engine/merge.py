"""Merge: writes W + ΔW of the chosen LoRA into the weight.  A step without a switch costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import copy_to_pinned, count_bytes, is_same_device, list_dtypes, map_tensors, move
from ..lora.deltas import count_columns
from .memory import Claims, MemoryBudget
from .site import Site, SiteDeltas, WeightedDelta

CACHED = 8 << 20  # bytes of a weight's rows in fp32 that are computed at once: they stay in the processor's cache
ON_DEVICE = 64 << 20  # the same on a GPU, where every part is one more launch
PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Factors:
    """One update ready for switching: its tensors are on the compute device, or in host memory if they do not fit there."""

    def __init__(self, weighted: WeightedDelta, device: torch.device, claims: Claims):
        self.weighted = weighted
        self.device = device
        delta, low_rank = weighted.delta, weighted.delta.factors()
        parts = (delta if low_rank is None else None, low_rank, delta.bias, delta.bias_factor)
        if device.type == "cpu" or claims.take(count_bytes(parts)):
            dtypes = list_dtypes(device)

            def place(t: Tensor) -> Tensor:
                keep = t.dtype in dtypes or not t.is_floating_point()  # indices stay integers
                return move(t, device, t.dtype if keep else torch.float32)

            parts = map_tensors(parts, place)
        elif device.type == "cuda" and claims.pin(count_bytes(parts)):
            parts = map_tensors(parts, copy_to_pinned)
        self.delta, self.low_rank, self.bias, self.bias_factor = parts

    def read_product(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
        """up [out, rank] and down [rank, in·kh·kw] on the compute device, and what their product is multiplied by."""
        assert self.low_rank is not None
        up, down, scale = self.low_rank
        return move(up, self.device, dtype), move(down, self.device, dtype), scale * self.weighted.weight

    def add_to(self, total: Tensor, base: Tensor, out: Tensor) -> None:
        """out ← total + w·ΔW(base), all [out, in·kh·kw] in fp32 or fp64; the three may be the same tensor."""
        if self.low_rank is None:
            assert self.delta is not None
            torch.add(total, self.delta.update(base.float()), alpha=self.weighted.weight, out=out)
            return
        up, down, scale = self.read_product(base.dtype)
        torch.addmm(total, up, down, alpha=scale, out=out)


class Merged:
    """One site whose weight we rewrite.  An exact backup is made before the first change."""

    def __init__(self, site: Site, deltas: SiteDeltas, device: torch.device, budget: MemoryBudget):
        self.site = site
        self.deltas = deltas
        self.device = device
        self.claims = Claims(budget)
        self.weight: Tensor | None = None  # backups, of the site's part
        self.bias: Tensor | None = None
        self.backed_up = False
        self.factors: dict[int, Factors] = {}

    def show(self, mask: int) -> None:
        """Weight ← W + Σ w·ΔW of the updates in ``mask``, computed in fp32 from the exact backup W and rounded once."""
        chosen = self.deltas.choose(mask)
        if not chosen:
            self.restore()
            return
        self.wait()
        self.back_up()
        if self.weight is not None:
            self.write_weight(chosen, self.weight)
        if self.bias is not None:
            self.write_bias(chosen, self.bias)

    def write_weight(self, chosen: list[WeightedDelta], backup: Tensor) -> None:
        target, source = self.site.take_part(self.site.module.weight.detach()), backup
        here = is_same_device(target.device, self.device)
        if here and not is_same_device(backup.device, target.device):
            put_back(target, backup)  # which needs no memory of the device's beside it
            source = target
        factors = [self.make_ready(weighted) for weighted in chosen]
        if all(each.low_rank is not None for each in factors):
            self.add_products(factors, target, source)
        else:
            self.add_updates(factors, target, source)

    def add_products(self, factors: list[Factors], target: Tensor, source: Tensor) -> None:
        """target ← source + Σ w·scale·up @ down, some rows after the others, which are fp32 only while they are computed.

        ``target`` may be ``source``.  A weight that is fp32 or fp64 itself needs no copy.
        """
        dtype, columns = choose_wide_type(target), source[0].numel()
        products = [each.read_product(dtype) for each in factors]
        if target.dtype == dtype and target.is_contiguous() and is_same_device(target.device, self.device):
            if target is not source:
                target.copy_(source)
            add_rows(target.view(-1, columns), products, slice(None))
            return
        most = CACHED if self.device.type == "cpu" else ON_DEVICE
        count = min(len(target), max(1, most // (columns * dtype.itemsize)))
        near = is_same_device(source.device, self.device)
        wide = self.claims.budget.lend((count, *source.shape[1:]), dtype, self.device) if near else None
        for first in range(0, len(target), count):
            rows = slice(first, min(first + count, len(target)))
            part = source[rows]
            part = move(part.contiguous(), self.device, dtype) if wide is None else wide[: len(part)].copy_(part)
            add_rows(part.view(len(part), columns), products, rows)
            put(target[rows], part)

    def add_updates(self, factors: list[Factors], target: Tensor, source: Tensor) -> None:
        """The same for any updates: in the weight itself if that is fp32 or fp64, else in one wider copy.

        Updates that depend on W are added first.  Only if there are two of them is a second copy of W needed.
        """
        here = is_same_device(target.device, self.device)
        wide = move(source.contiguous(), self.device, choose_wide_type(target))
        base = wide.view(target.shape[0], -1)
        columns = {id(each): count_columns(each.weighted.delta.shape) or base.shape[1] for each in factors}
        whole = all(n == base.shape[1] for n in columns.values())
        in_place = here and target.dtype == base.dtype and target.is_contiguous() and whole
        out = target.view(base.shape) if in_place else base if wide is not source else base.clone()
        factors = sorted(factors, key=lambda each: not each.weighted.delta.asks_base)
        if (out is base or wide is target) and sum(each.weighted.delta.asks_base for each in factors) > 1:
            base = base.clone()
        total = base if whole else out  # where an update is narrower, ``out`` has W in the other columns
        for each in factors:
            n = columns[id(each)]
            each.add_to(total[:, :n], base[:, :n], out[:, :n])
            total = out
        if not in_place:
            put(target, out.view(target.shape))

    def write_bias(self, chosen: list[WeightedDelta], backup: Tensor) -> None:
        target = self.site.take_part(self.site.module.bias.detach())
        own = total = move(backup, self.device, choose_wide_type(backup))
        for weighted in chosen:
            factors = self.make_ready(weighted)
            if factors.bias is not None:
                total = total + weighted.weight * move(factors.bias, self.device, total.dtype)
            if factors.bias_factor is not None:
                total = total + weighted.weight * move(factors.bias_factor, self.device, total.dtype) * own
        put(target, total)

    def make_ready(self, weighted: WeightedDelta) -> Factors:
        if id(weighted) not in self.factors:
            self.factors[id(weighted)] = Factors(weighted, self.device, self.claims)
        return self.factors[id(weighted)]

    def back_up(self) -> None:
        """Copies only what will be written: another unit may be writing the weight of a layer whose bias is ours."""
        if self.backed_up:
            return
        module = self.site.module
        if self.deltas.with_weight or module.weight.dim() == 1:
            self.weight = self.copy_backup(self.site.take_part(module.weight.detach()))
        with_bias = self.deltas.with_bias or self.deltas.scales_bias
        if with_bias and getattr(module, "bias", None) is not None:  # a norm without a bias gets none
            self.bias = self.copy_backup(self.site.take_part(module.bias.detach()))
        self.backed_up = True

    def copy_backup(self, tensor: Tensor) -> Tensor:
        """A copy on the same device, or in host memory if it does not fit there."""
        if tensor.device.type == "cpu" or self.claims.take(tensor.nbytes):
            return tensor.clone()
        if tensor.device.type == "cuda" and self.claims.pin(tensor.nbytes):
            return copy_to_pinned(tensor)
        return tensor.to("cpu", copy=True)

    def wait(self) -> None:
        """Waits for a copy of the weight to the GPU that may still be running: copies from pinned memory return at once."""
        if self.device.type == "cuda" and self.site.module.weight.device.type == "cpu":
            torch.cuda.synchronize(self.device)

    def restore(self) -> None:
        if self.backed_up:
            self.wait()
        if self.weight is not None:
            put_back(self.site.take_part(self.site.module.weight.detach()), self.weight)
        if self.bias is not None:
            put_back(self.site.take_part(self.site.module.bias.detach()), self.bias)

    def close(self) -> None:
        """Restores the weight bit for bit, and frees everything."""
        self.restore()
        self.weight = self.bias = None
        self.backed_up = False
        self.factors.clear()
        self.claims.give_back()

    def list_written(self) -> list[Tensor]:
        pairs = ((self.weight, "weight"), (self.bias, "bias"))
        return [getattr(self.site.module, name) for backup, name in pairs if backup is not None]

    def is_attached(self) -> bool:
        return True  # a written weight needs nothing else


def add_rows(wide: Tensor, products: list[tuple[Tensor, Tensor, float]], rows: slice) -> None:
    """wide ← wide + Σ scale·up @ down, of these rows.  A first layer may be wider than the updates."""
    for up, down, scale in products:
        part = wide[:, : down.shape[1]]
        torch.addmm(part, up[rows], down, alpha=scale, out=part)


def put(target: Tensor, result: Tensor) -> None:
    """target ← result.  For another device the result is rounded first, so that fewer bytes are copied."""
    there = target.device.type == result.device.type or target.dtype not in list_dtypes(result.device)
    target.copy_(result if there else result.to(target.dtype))


def put_back(target: Tensor, backup: Tensor) -> None:
    """target ← backup.  The CPU waits only if the weight is in its own memory."""
    target.copy_(backup, non_blocking=target.device.type == "cuda")


def choose_wide_type(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64.  (torch does not promote fp8, in which a norm's weight may be.)"""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
