"""What the rule knows of a pair: per layer, S_c and S_s (Top-K sums) and the absolute sums that γ is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .deltas import Delta
from .numerics import exact_math
from .pairing import Unit

Weights = Callable[[Unit], "Tensor | None"]  # the model's weight of a unit, fp32 [out, in·kh·kw]; None where it has none


@dataclass(frozen=True)
class Scores:
    """Columns over units, float64 ``[units]``; a LoRA that is absent from a unit has rank and sums 0 there."""

    k: tuple[int, ...]
    content_topk: Tensor
    style_topk: Tensor
    content_abs: Tensor
    style_abs: Tensor


def choose_k(unit: Unit, k: str | int, base: Tensor | None = None) -> int:
    """K = r_c·r_s (paper, equation 4), at most the element count (of ``base``).  An absent LoRA counts as rank 1."""
    content, style = unit.content, unit.style
    wanted = k if isinstance(k, int) else (content.rank if content else 1) * (style.rank if style else 1)
    return max(1, min(wanted, unit.elements if base is None else base.numel()))


def topk_sum(x: Tensor, k: int) -> Tensor:
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


def absolute(delta: Delta, room: Tensor, base: Tensor | None) -> Tensor:
    """|ΔW|, fp32 [out, in·kh·kw], on the device of ``room``: where two factors make it, inside ``room`` (fp32, flat).

    A product of some MB in memory that is new each time costs as much again in page faults.
    """
    if delta.relative:
        assert base is not None
        return delta.update(base).abs_()
    low_rank = delta.factors()
    if low_rank is None:
        return delta.dense(room.device).abs_()
    up, down, scale = low_rank  # up: [out, rank], down: [rank, in·kh·kw]
    product = room[: up.shape[0] * down.shape[1]].view(up.shape[0], down.shape[1])
    torch.mm(up.to(room.device, torch.float32) * scale, down.to(room.device, torch.float32), out=product)
    return product.abs_()


def magnitude(delta: Delta, k: int, room: Tensor, base: Tensor | None) -> tuple[float, float]:
    """(sum of the k largest |ΔW|, sum of all |ΔW|), in fp32 from ΔW = scale·up @ down."""
    size = absolute(delta, room, base)
    return float(topk_sum(size, k)), float(size.sum())


def score(units: Sequence[Unit], k: str | int, device: torch.device, weights: Weights | None = None) -> Scores:
    """Scores of every unit: one pass, one product per LoRA and unit; nothing is kept but four numbers.

    OFT, BOFT and IA3 are scored by what they would add to the weight, ΔW = W' − W: only that is of one measure with a
    LoRA's ΔW.  How far R is from I is not: it does not know how large the weights are that it turns, and one γ for all
    layers could not make up for it.  So these units need the loaded model; where it lacks a layer, nothing acts there, and
    its sums are 0.

    Args: k: "auto" or K itself.  device: where the products are taken.  weights: needed where a unit is ``relative``.
    """
    ks, rows = [], []
    with exact_math(device):
        room = torch.empty(max((unit.elements for unit in units), default=0), device=device)
        for unit in units:
            base = weights(unit) if unit.relative and weights is not None else None
            absent = unit.relative and base is None
            n = choose_k(unit, k, base)
            base = base if base is None else base.to(device)
            pair = [
                magnitude(d, n, room, base) if d is not None and not absent else (0.0, 0.0)
                for d in (unit.content, unit.style)
            ]
            ks.append(n)
            rows.append([pair[0][0], pair[1][0], pair[0][1], pair[1][1]])
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return Scores(tuple(ks), *table.unbind(1))
