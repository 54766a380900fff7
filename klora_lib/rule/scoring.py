"""The scores of a pair: for each layer the Top-K sums S_c and S_s, and the absolute sums from which γ is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..devices import find_tensors, is_out_of_memory, move
from ..errors import LoraFileError, PairError
from ..lora.deltas import Delta, widen
from ..numerics import exact_math
from .pairing import Unit
from .watch import Watch, ignore

T = TypeVar("T")
# (unit, device) -> the model's weight of it, fp32 [out, in·kh·kw] on that device; None where the model has none
Weights = Callable[[Unit, torch.device], "Tensor | None"]
@dataclass(frozen=True)
class Scores:
    """Columns over units, float64 ``[units]``; a LoRA that is absent from a unit has rank and sums 0 there.

    squared: the elements were squared, and K is all of them: every column is then the energy ‖ΔW‖².
    directions: of each unit, for the method np: those that hold most of a style's energy, where it has no two factors.
    """

    k: tuple[int, ...]
    content_topk: Tensor
    style_topk: Tensor
    content_abs: Tensor
    style_abs: Tensor
    squared: bool = False
    directions: tuple[Tensor | None, ...] = ()  # each fp32 [in·kh·kw, k], orthonormal

    def about(self, i: int) -> Scores:
        """The scores of unit ``i`` alone."""
        one = slice(i, i + 1)
        return Scores(
            self.k[one], self.content_topk[one], self.style_topk[one], self.content_abs[one], self.style_abs[one],
            self.squared, self.directions[one] or (None,),
        )  # fmt: skip


def choose_k(unit: Unit, k: str | int, base: Tensor | None = None) -> int:
    """K = r_c·r_s (paper, equation 4), at most the element count (of ``base``).  An absent LoRA counts as rank 1."""
    elements = unit.elements if base is None else base.numel()
    if k == "all":
        return max(1, elements)
    content, style = unit.content, unit.style
    wanted = k if isinstance(k, int) else (content.rank if content else 1) * (style.rank if style else 1)
    return max(1, min(wanted, elements))


def sum_topk(x: Tensor, k: int) -> Tensor:
    """Sum of the ``k`` largest of the non-negative ``x``, exactly, without ordering all of it.

    Among the maxima of blocks of x, the k-th largest is a lower bound of the k-th largest element, so everything that
    counts is in the k blocks with the largest maxima, and is at least that bound: little more than k elements are left.
    The block size balances the search among n/B maxima with the pass over k·B candidates (measured: about 2.5·√(n/k)).
    """
    x = x.reshape(-1)
    n = x.numel()
    if k >= n:
        return x.sum()
    size = 1 << round(math.log2(2.5 * math.sqrt(n / k)))
    whole = n // size * size
    if k > whole // size:
        return torch.topk(x, k, sorted=False).values.sum()
    blocks = x[:whole].view(-1, size)
    best = torch.topk(blocks.amax(1), k, sorted=False)
    candidates = torch.cat([blocks[best.indices].reshape(-1), x[whole:]])
    candidates = candidates[candidates >= best.values.min()]
    return torch.topk(candidates, k, sorted=False).values.sum()


def compute_absolute(delta: Delta, scratch: Tensor, base: Tensor | None) -> Tensor:
    """|ΔW|, fp32 [out, in·kh·kw], on the device of ``scratch`` (fp32, flat).  A product of factors is made inside it.

    New memory for every product would cost as much time again in page faults.
    """
    if delta.relative:
        assert base is not None
        return delta.update(base).abs_()
    low_rank = delta.factors()
    if low_rank is None:
        return delta.dense(scratch.device).abs_()
    up, down, scale = low_rank  # up: [out, rank], down: [rank, in·kh·kw]
    product = scratch[: up.shape[0] * down.shape[1]].view(up.shape[0], down.shape[1])
    up, down = (move(t, scratch.device, torch.float32) for t in (up, down))
    torch.mm(up * scale, down, out=product)
    return product.abs_()


def compute_sums(delta: Delta, k: int, scratch: Tensor, base: Tensor | None = None) -> tuple[float, float]:
    """(sum of the k largest |ΔW|, sum of all |ΔW|), in fp32 from ΔW = scale·up @ down.

    Raises LoraFileError where ΔW, or the sum, is too large for fp32.
    """
    size = compute_absolute(delta, scratch, base)
    total = float(size.sum())
    if not math.isfinite(total):
        raise LoraFileError(f"its update is too large for fp32, with numbers up to {find_largest(delta):.3g}")
    return float(sum_topk(size, k)), total


def find_largest(delta: Delta) -> float:
    """The largest absolute value in a module's tensors."""
    return max((float(widen(t).abs().max()) for t in find_tensors(delta)), default=0.0)


def vanishes(delta: Delta) -> bool:
    """Whether ΔW is zero in fp32 only because its numbers are so small: none of its tensors is all zero."""
    return not delta.relative and all(bool(widen(t).any()) for t in find_tensors(delta)) and not bool(delta.dense().any())


def score_units(
    units: Sequence[Unit], k: str | int, device: torch.device, free: float = math.inf, weights: Weights | None = None,
    watch: Watch = ignore,
) -> Scores:  # fmt: skip
    """Scores of every unit: one product per LoRA and unit, of which only four numbers are kept.

    OFT, BOFT and IA3 are scored by what they add to the weight, ΔW = W' − W, because only this can be compared with a LoRA's
    ΔW.  (The distance of R from I ignores how large the weights are, and one γ for all layers cannot correct that.)  So
    these units need the loaded model.  If it lacks a layer, nothing acts there, and its sums are 0.

    Args: k: "auto", "all" or K itself.  device: computes the products.  free: bytes of it that may be used; if they are too
        few, or the device runs out of memory, the CPU computes.  weights: needed if a unit is ``relative``.
    Raises LoraFileError, with role and layer, if an update is too large for fp32, and PairError if the CPU has too little
    memory too.
    """
    return run_where_memory_is(units, device, free, lambda there: score_units_on(units, k, there, weights, watch))


def run_where_memory_is(
    units: Sequence[Unit], device: torch.device, free: float, act: Callable[[torch.device], T]
) -> T:
    """``act`` on ``device``, or on the CPU: see ``score_units``."""
    cpu = torch.device("cpu")
    bytes_needed = PRODUCTS * 4 * max((unit.elements for unit in units), default=0)
    if device.type != "cpu" and bytes_needed <= free:
        try:
            return act(device)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
    try:
        return act(cpu)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise PairError(f"there is no memory to compare the two LoRAs: {bytes_needed >> 20} MB are needed for "
                        f"{max(units, key=lambda u: u.elements).name}") from e  # fmt: skip


PRODUCTS = 4  # the most copies of one ΔW in fp32 that are alive at a time: scratch, a dense update and what Top-K gathers


def score_units_on(
    units: Sequence[Unit], k: str | int, device: torch.device, weights: Weights | None, watch: Watch
) -> Scores:
    ks, rows = [], []
    with exact_math(device):
        scratch = torch.empty(max((unit.elements for unit in units), default=0), device=device)
        for unit in units:
            watch()
            base = weights(unit, device) if unit.relative and weights is not None else None
            n = choose_k(unit, k, base)
            pair = [
                score_update(role, unit, delta, n, scratch, base)
                for role, delta in (("content", unit.content), ("style", unit.style))
            ]
            ks.append(n)
            rows.append([pair[0][0], pair[1][0], pair[0][1], pair[1][1]])
    content, style, content_abs, style_abs = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1)
    return Scores(tuple(ks), content, style, content_abs, style_abs)


def score_update(
    role: str, unit: Unit, delta: Delta | None, k: int, scratch: Tensor, base: Tensor | None
) -> tuple[float, float]:
    if delta is None or (unit.relative and base is None):
        return 0.0, 0.0
    try:
        return compute_sums(delta, k, scratch, base)
    except LoraFileError as e:
        raise LoraFileError(f"{unit.name} cannot be used: {e.message}", role) from None
