"""What one LoRA module adds to one weight: small frozen classes with the same methods.

Every matrix is flat, [out, in·kh·kw].  Every result is a new fp32 tensor, which the caller may overwrite.  Tensors keep the
type that they have in the file (fp8 to fp64) and are converted to fp32 for every computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..devices import move
from ..errors import LoraFileError

Device = torch.device | str | None
UNKNOWN = 0  # a size that the file does not tell: OFT and IA3 know one side of their weight


def widen(tensor: Tensor, device: Device = None) -> Tensor:
    """`tensor` as fp32 on `device` (where it is, when None)."""
    return move(tensor, device, torch.float32)


def count_columns(shape: Sequence[int]) -> int:
    """in·kh·kw of a weight's shape; 1 for a norm's."""
    return math.prod(shape[1:])


class Delta:
    """One module's update of one weight W; the base of every type below.

    shape: of ΔW as in the model, [out, in] or [out, in, kh, kw]; [n] for a norm or a bias alone.
        A LoHa or LoKr written flat does not know its kernel: [out, in·kh·kw].  Sizes may be UNKNOWN.
    rank: the dim the file was trained with; min(out, in·kh·kw) for full matrices; the sum over a fused module's parts.
    bias: what is added to the layer's bias, [out], or None.
    bias_factor: times the layer's own bias, what is added to it, [out], or None.
    asks_base: whether the update depends on the weight W that it is added to.
    relative: ΔW can only be computed from W.  Then there is no dense() and no factors(), only update().
    merges_only: whether it is for writing into the weight alone, as it costs too much at every forward.
    """

    shape: tuple[int, ...]
    rank: int
    bias: Tensor | None
    asks_base = False
    relative: bool = False
    merges_only = False

    @property
    def bias_factor(self) -> Tensor | None:
        return None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether it can act on a weight of ``shape``; sizes that are known are already compared."""
        return True

    def dense(self, device: Device = None) -> Tensor:
        """ΔW with the file's alpha/rank, without DoRA and without a user's weight: fp32 [out, in·kh·kw]."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(up [out, rank], down [rank, in·kh·kw], scale) if the whole update is scale·up @ down; else None."""
        return None

    def update(self, base: Tensor) -> Tensor:
        """The update of a weight `base` (fp32 [out, in·kh·kw]), in its type, shape and device; dense() for most types."""
        return self.dense(base.device)


@dataclass(frozen=True, eq=False)
class Lora(Delta):
    """ΔW = scale · up @ down; a convolution's kernel belongs to down, a CP core has been folded into it."""

    up: Tensor  # [out, rank]
    down: Tensor  # [rank, in·kh·kw]
    scale: float
    shape: tuple[int, ...]
    bias: Tensor | None = None

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.down.shape[0]

    def dense(self, device: Device = None) -> Tensor:
        return (widen(self.up, device) * self.scale) @ widen(self.down, device)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.up, self.down, self.scale


@dataclass(frozen=True, eq=False)
class Full(Delta):
    """ΔW itself (`diff`), times `scale` if the file has that tensor; alpha has no meaning here."""

    diff: Tensor  # [out, in·kh·kw]
    scale: float
    shape: tuple[int, ...]
    bias: Tensor | None = None

    @property
    def rank(self) -> int:  # type: ignore[override]
        return min(self.diff.shape)

    def dense(self, device: Device = None) -> Tensor:
        return widen(self.diff, device) * self.scale


@dataclass(frozen=True, eq=False)
class Norm(Delta):
    """The update of a norm's weight and bias; or, if `weight` is None, of the bias of any layer."""

    weight: Tensor | None  # [n]
    bias: Tensor | None  # [n]
    rank: int = 1

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        known = self.weight if self.weight is not None else self.bias
        assert known is not None
        return tuple(known.shape)

    def dense(self, device: Device = None) -> Tensor:
        """fp32 [n, 1]; zeros for a bias alone."""
        if self.weight is None:
            return torch.zeros(self.shape[0], 1, device=device)
        return widen(self.weight, device).reshape(-1, 1).clone()

    def update(self, base: Tensor) -> Tensor:
        return torch.zeros_like(base) if self.weight is None else self.dense(base.device).reshape(base.shape)


@dataclass(frozen=True, eq=False)
class Dora(Delta):
    """Weight-decomposed: W becomes magnitude · (W + ΔW) / ‖W + ΔW‖, ΔW from any other module.

    The shape of the magnitude tells which norm is meant: [out, 1] is one norm per output row (PEFT, newer LyCORIS), [1, in]
    one per input channel, over outputs and kernel (kohya, OneTrainer, older LyCORIS).
    """

    inner: Delta
    magnitude: Tensor  # [out, 1] or [1, in]
    asks_base = True

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
        return self.inner.dense(device)

    def update(self, base: Tensor) -> Tensor:
        turned = self.inner.update(base).add_(base).contiguous()  # W + ΔW: [out, in·kh·kw]
        magnitude = widen(self.magnitude, base.device)
        if magnitude.shape[0] != 1 or self.shape[0] == magnitude.numel() == 1:
            norm = turned.norm(dim=1, keepdim=True)  # [out, 1]
            return turned.mul_(magnitude / avoid_zero(norm)).sub_(base)
        by_input = turned.view(turned.shape[0], magnitude.numel(), -1)  # [out, in, kh·kw]
        norm = by_input.norm(dim=(0, 2), keepdim=True)  # [1, in, 1]
        by_input.mul_(magnitude.view(1, -1, 1) / avoid_zero(norm))
        return turned.sub_(base)


def avoid_zero(norm: Tensor) -> Tensor:
    """`norm`, but never 0, so that a weight of zeros stays zero instead of becoming NaN."""
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Fused(Delta):
    """Members of one fused weight, stacked along its output rows.  The rows of a member that is None are zero."""

    parts: tuple[Delta | None, ...]
    rows: tuple[int, ...]

    @property
    def asks_base(self) -> bool:  # type: ignore[override]
        return any(part.asks_base for part in self.known)

    @property
    def known(self) -> list[Delta]:
        return [part for part in self.parts if part is not None]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return sum(self.rows), *self.known[0].shape[1:]

    @property
    def rank(self) -> int:  # type: ignore[override]
        return sum(part.rank for part in self.known)

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return any(part.relative for part in self.known)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        both = zip(self.parts, self.rows, strict=True)
        return all(part is None or part.accepts((rows, *shape[1:])) for part, rows in both)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.stacked([None if part is None else part.bias for part in self.parts])

    @property
    def bias_factor(self) -> Tensor | None:
        return self.stacked([None if part is None else part.bias_factor for part in self.parts])

    def stacked(self, vectors: Sequence[Tensor | None]) -> Tensor | None:
        """These vectors as one, with zeros for a part that has none; None if no part has one."""
        known = [widen(vector) for vector in vectors if vector is not None]
        if not known:
            return None
        whole, row = known[0].new_zeros(sum(self.rows)), 0
        for vector, rows in zip(vectors, self.rows, strict=True):
            if vector is not None:
                whole[row : row + rows] = vector
            row += rows
        return whole

    def dense(self, device: Device = None) -> Tensor:
        empty = count_columns(self.shape)
        return torch.cat(
            [
                torch.zeros(rows, empty, device=device) if part is None else part.dense(device)
                for part, rows in zip(self.parts, self.rows, strict=True)
            ]
        )

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """Block-diagonal up, stacked down, scales folded into up; fp32."""
        each = [part.factors() for part in self.known]
        ups = [widen(triple[0]) * triple[2] for triple in each if triple is not None]
        downs = [widen(triple[1]) for triple in each if triple is not None]
        if len(ups) < len(each):
            return None
        up = ups[0].new_zeros(sum(self.rows), self.rank)
        row = column = 0
        blocks = iter(ups)
        for part, rows in zip(self.parts, self.rows, strict=True):
            if part is not None:
                block = next(blocks)  # [rows, rank of the part]
                up[row : row + rows, column : column + block.shape[1]] = block
                column += block.shape[1]
            row += rows
        return up, torch.cat(downs), 1.0

    def update(self, base: Tensor) -> Tensor:
        return torch.cat(
            [
                torch.zeros_like(slab) if part is None else part.update(slab)
                for part, slab in zip(self.parts, torch.split(base, list(self.rows)), strict=True)
            ]
        )


def overflows(delta: Delta) -> bool:
    """Whether ΔW is too large for fp32.  Its elements are computed only if a bound cannot exclude it."""
    if delta.relative:  # nothing is known of it without W
        return False
    low_rank = delta.factors()
    if low_rank is not None:
        up, down, scale = low_rank
        most = float(widen(up).abs().max()) * float(widen(down).abs().max()) * up.shape[1] * abs(scale)
        if most < torch.finfo(torch.float32).max:
            return False
    return not bool(delta.dense().isfinite().all())


def fuse_parts(parts: Sequence[Delta | None], rows: Sequence[int]) -> Delta:
    """One module for a fused weight.

    Args: parts: from the top row down; None for an absent part.  rows: the number of output rows of each part.
    Raises LoraFileError if a part has another number of rows, if widths differ, or if all parts are absent.
    """
    known = [(part, height) for part, height in zip(parts, rows, strict=False) if part is not None]
    if not known or len(parts) != len(rows):
        raise LoraFileError(f"a fused weight needs at least one of its {len(parts)} parts, and a height for each")
    for part, height in known:
        if part.shape[0] not in (height, UNKNOWN):
            raise LoraFileError(f"a part of a fused weight has {part.shape[0]} rows where {height} are expected")
    widths = sorted({count_columns(part.shape) for part, _ in known} - {UNKNOWN})
    if len(widths) > 1:
        raise LoraFileError(f"the parts of a fused weight differ in width: {' and '.join(map(str, widths))} columns")
    return Fused(tuple(parts), tuple(rows))
