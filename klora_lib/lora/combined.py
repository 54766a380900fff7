"""Modules made from other modules, for the methods that change the updates themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices import move
from .deltas import UNKNOWN, Delta, Device, widen
from .factors import find_row_space


@dataclass(frozen=True, eq=False)
class Projected(Delta):
    """ΔW·(I − share·QQᵀ): ``inner`` with its part along the directions Q reduced.  It stays low-rank if ``inner`` is.

    directions: Q [columns, k], orthonormal; or the low-rank module whose rows span them.
    """

    inner: Delta
    directions: Tensor | Delta
    share: float

    @property
    def asks_base(self) -> bool:  # type: ignore[override]
        return self.inner.asks_base

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.inner.accepts(shape)

    @property
    def bias_factor(self) -> Tensor | None:
        return self.inner.bias_factor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.shape

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.inner.rank

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.inner.bias

    def dense(self, device: Device = None) -> Tensor:
        return self.without(self.inner.dense(device))

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """Only the down factor changes."""
        low_rank = self.inner.factors()
        return low_rank and (low_rank[0], self.without(widen(low_rank[1]).clone()), low_rank[2])

    def update(self, base: Tensor) -> Tensor:
        return self.without(self.inner.update(base))

    def without(self, rows: Tensor) -> Tensor:
        """``rows`` [n, columns], changed in place.  A first layer may have columns that the directions know nothing of."""
        q = self.directions if isinstance(self.directions, Tensor) else make_basis(self.directions)
        q = move(q, rows.device, torch.float32)
        known = rows[:, : len(q)]
        known.addmm_(known @ q, q.T, alpha=-self.share)
        return rows


def make_basis(delta: Delta) -> Tensor:
    """The orthonormal directions of a low-rank module's rows.  fp32 [columns, k]"""
    low_rank = delta.factors()
    assert low_rank is not None
    return find_row_space(*low_rank[:2])


@dataclass(frozen=True, eq=False)
class Elected(Delta):
    """Two weighted updates as one, by TIES-Merging: see ``elect``.  The biases are added."""

    one: Delta
    other: Delta
    weights: tuple[float, float]
    density: float
    merges_only = True

    @property
    def asks_base(self) -> bool:  # type: ignore[override]
        return self.one.asks_base or self.other.asks_base

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.one.relative or self.other.relative

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.one.accepts(shape) and self.other.accepts(shape)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.other.shape if UNKNOWN in self.one.shape else self.one.shape

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.one.rank + self.other.rank

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.added(self.one.bias, self.other.bias)

    @property
    def bias_factor(self) -> Tensor | None:
        return self.added(self.one.bias_factor, self.other.bias_factor)

    def added(self, *each: Tensor | None) -> Tensor | None:
        known = [widen(tensor) * weight for tensor, weight in zip(each, self.weights) if tensor is not None]
        return sum(known[1:], known[0]) if known else None

    def dense(self, device: Device = None) -> Tensor:
        return elect([d.dense(device).mul_(w) for d, w in zip((self.one, self.other), self.weights)], self.density)

    def update(self, base: Tensor) -> Tensor:
        return elect([d.update(base).mul_(w) for d, w in zip((self.one, self.other), self.weights)], self.density)


def elect(updates: list[Tensor], density: float) -> Tensor:
    """TIES-Merging: of each update the share ``density`` of largest elements is kept; each element's sign is that of their
    sum, and its value the mean of those that have this sign."""
    kept = [trim(update, density) for update in updates]
    sign = torch.stack(kept).sum(0).sign_()
    agree = [update * sign > 0 for update in kept]
    total = sum((torch.where(mine, update, 0.0) for mine, update in zip(agree, kept)), torch.zeros_like(sign))
    return total / torch.stack(agree).sum(0).clamp_min_(1)


def trim(update: Tensor, density: float) -> Tensor:
    """``update`` with only its ⌈density·n⌉ largest elements; those equal to the least of them stay too."""
    size = update.abs()
    k = max(1, min(size.numel(), round(density * size.numel())))
    if k == size.numel():
        return update
    return torch.where(size >= size.flatten().topk(k, sorted=False).values.min(), update, 0.0)
