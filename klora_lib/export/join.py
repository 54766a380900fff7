"""Several weighted updates of one layer as one low-rank product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.deltas import Delta, count_columns, widen
from ..numerics import exact_math

Weighted = tuple[Delta, float]  # an update, and the user's weight
MOST_RANK = 128  # of a layer whose update has no two factors; more is a matter of the user's ``rank``
SPARE, TURNS = 16, 3  # of the search for leading directions: columns beyond the rank, and passes over ΔW


class Product(NamedTuple):
    """up @ down: all that acts on one layer, with scales and weights inside.  ``lost``: ‖ΔW − up @ down‖² / ‖ΔW‖²."""

    up: Tensor  # fp32 [out, rank]
    down: Tensor  # fp32 [rank, in·kh·kw]
    lost: float = 0.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def join_updates(updates: Sequence[Weighted], rank: int | None = None) -> Product | None:
    """Σ weight·ΔW as one product; None if nothing is left of it.

    Exact, [w₁·up₁ w₂·up₂] @ [down₁; down₂], if every ΔW has two factors.  Else the nearest product, from the leading
    singular vectors of the sum, of at most ``rank`` columns; None means the sum of the files' ranks, at most MOST_RANK.
    The updates must not depend on the model's weight.
    """
    updates = [(delta, weight) for delta, weight in updates if weight]
    each = [(delta.factors(), weight) for delta, weight in updates]
    known = [(found, weight) for found, weight in each if found is not None]
    if len(known) < len(updates):
        return approximate(updates, rank or min(sum(delta.rank for delta, _ in updates), MOST_RANK))
    ups = [widen(up) * (scale * weight) for (up, _, scale), weight in known]
    downs = [widen(down) for (_, down, _), _ in known]
    pairs = [balance(up, down) for up, down in zip(ups, downs) if bool(up.any()) and bool(down.any())]
    return Product(torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])) if pairs else None


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of about equal size, so that neither leaves the range of fp16.

    They are multiplied by powers of two, which rounds nothing.
    """
    shift = round(float((down.abs().max().double().log2() - up.abs().max().double().log2()) / 2))
    return torch.ldexp(up, torch.tensor(shift)), torch.ldexp(down, torch.tensor(-shift))


def approximate(updates: Sequence[Weighted], rank: int) -> Product | None:
    """The product of ``rank`` columns that is nearest to the sum, nearly: found by subspace iteration (arXiv 0909.4061)."""
    with exact_math(torch.device("cpu")):
        total = sum_updates(updates)
        size = float(total.double().square().sum())
        if size == 0:
            return None
        wide = min(rank + SPARE, *total.shape)
        # an own generator: the host's noise comes from torch's
        basis = torch.randn(total.shape[1], wide, generator=torch.Generator().manual_seed(0))
        basis = torch.linalg.qr(total @ basis)[0]
        for _ in range(TURNS):
            basis = torch.linalg.qr(total @ torch.linalg.qr(total.T @ basis)[0])[0]  # [out, wide]
        left, sizes, right = torch.linalg.svd(basis.T @ total, full_matrices=False)
        root = sizes[:rank].sqrt()
        up, down = basis @ left[:, :rank] * root, root[:, None] * right[:rank]
        lost = float((total - up @ down).double().square().sum()) / size
    return Product(up, down, lost)


def sum_updates(updates: Sequence[Weighted]) -> Tensor:
    """Σ weight·ΔW, fp32 [out, in·kh·kw]."""
    (first, weight), *others = updates
    total = first.dense().mul_(weight)
    for delta, weight in others:
        total.add_(delta.dense(), alpha=weight)
    return total.view(-1, count_columns(total.shape))
