"""A fused layer's module taken apart: what it adds to some of the layer's output rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import PairError
from .deltas import Delta, Device, Dora, Full, Fused, Lora, Norm
from .lycoris import Glora
from .multiplied import Scaled, Turned
from .rows import Swapped


@dataclass(frozen=True, eq=False)
class Rows(Delta):
    """Rows [first, last) of a module whose update asks nothing of the weight (LoHa, LoKr): made whole, then cut."""

    inner: Delta
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.last - self.first, *self.inner.shape[1:]

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.inner.rank

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return cut(self.inner.bias, self.first, self.last)

    def dense(self, device: Device = None) -> Tensor:
        return self.inner.dense(device)[self.first : self.last]


def rows_of(delta: Delta | None, first: int, last: int) -> Delta | None:
    """Output rows [first, last) of ``delta``; None where it has nothing there.

    Raises PairError for a DoRA whose norm runs over all rows, of which a model that has the layer split knows a part.
    """
    if delta is None or (isinstance(delta, Fused) and absent(delta, first, last)):
        return None
    shape, bias = (last - first, *delta.shape[1:]), cut(delta.bias, first, last)
    if isinstance(delta, Fused):
        return member(delta, first, last)
    if isinstance(delta, Lora):
        return replace(delta, up=delta.up[first:last], shape=shape, bias=bias)
    if isinstance(delta, Full):
        return replace(delta, diff=delta.diff[first:last], shape=shape, bias=bias)
    if isinstance(delta, Glora):
        return replace(delta, b_up=delta.b_up[first:last], shape=shape, bias=bias)
    if isinstance(delta, (Turned, Scaled)):
        if (part := delta.rows(first, last)) is None:
            raise PairError("an OFT over all rows of a fused layer cannot act on this model, which has the layer split")
        return part
    if isinstance(delta, Norm):
        return Norm(cut(delta.weight, first, last), bias)
    if isinstance(delta, Dora) and delta.magnitude.shape[0] == delta.shape[0]:
        inner = rows_of(delta.inner, first, last)
        return inner and Dora(inner, delta.magnitude[first:last])
    if isinstance(delta, (Dora, Swapped)):
        raise PairError("a DoRA by input channel of a fused layer cannot act on this model, which has the layer split")
    return Rows(delta, first, last)


def absent(delta: Fused, first: int, last: int) -> bool:
    return all(part is None for part, top, end in stacked(delta) if top < last and first < end)


def member(delta: Fused, first: int, last: int) -> Delta | None:
    """The one part that lies in [first, last): the members of a fused layer are as tall in every file and model."""
    inside = [(part, top) for part, top, end in stacked(delta) if top <= first and last <= end]
    if not inside:
        raise PairError(f"rows {first} to {last} of a fused layer are those of several of the LoRA's modules")
    part, top = inside[0]
    whole = part is not None and part.shape[0] == last - first
    return part if whole else rows_of(part, first - top, last - top)


def stacked(delta: Fused) -> list[tuple[Delta | None, int, int]]:
    """(part, first row, row after its last)."""
    ends = [sum(delta.rows[: i + 1]) for i in range(len(delta.rows))]
    return [(part, end - rows, end) for part, rows, end in zip(delta.parts, delta.rows, ends)]


def cut(tensor: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if tensor is None else tensor[first:last]
