"""The LyCORIS products: Hadamard (LoHa), Kronecker (LoKr) and generalised (GLoRA) updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .deltas import Delta, Device, widen


def fold_core(core: Tensor, down: Tensor) -> Tensor:
    """A CP (Tucker) core folded into the factor on its input side.

    core: [r, q, kh, kw], down: [q, in] -> [r, in·kh·kw]
    """
    return torch.einsum("rqhw,qi->rihw", widen(core), widen(down)).flatten(1)


@dataclass(frozen=True, eq=False)
class Loha(Delta):
    """ΔW = scale · (up1 @ down1) * (up2 @ down2), the outer product elementwise; CP cores folded into the downs."""

    up1: Tensor  # [out, rank]
    down1: Tensor  # [rank, in·kh·kw]
    up2: Tensor
    down2: Tensor
    scale: float
    shape: tuple[int, ...]
    bias: Tensor | None = None

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.down1.shape[0]

    def dense(self, device: Device = None) -> Tensor:
        one = widen(self.up1, device) @ widen(self.down1, device)
        return one.mul_(widen(self.up2, device) @ widen(self.down2, device)).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Lokr(Delta):
    """ΔW = scale · w1 ⊗ w2, either of them given whole or as (a @ b); a CP core folded into w2's b.

    Flattened, the Kronecker product of the matrices is that of the convolutions: w1 has no kernel.
    """

    w1: tuple[Tensor, ...]  # (whole [a, c],) or ([a, rank], [rank, c])
    w2: tuple[Tensor, ...]  # (whole [b, d·kh·kw],) or ([b, rank], [rank, d·kh·kw])
    scale: float
    rank: int
    shape: tuple[int, ...]
    bias: Tensor | None = None

    def dense(self, device: Device = None) -> Tensor:
        return torch.kron(multiply_factors(self.w1, device), multiply_factors(self.w2, device)).mul_(self.scale)


def multiply_factors(factors: tuple[Tensor, ...], device: Device) -> Tensor:
    """The only factor, or both multiplied."""
    first = widen(factors[0], device)
    return first if len(factors) == 1 else first @ widen(factors[1], device)


@dataclass(frozen=True, eq=False)
class Glora(Delta):
    """Update = scale · (W @ a_up @ a_down + b_up @ b_down), A acting on the input channels of each kernel place."""

    a_up: Tensor  # [in, rank]
    a_down: Tensor  # [rank, in]
    b_up: Tensor  # [out, rank]
    b_down: Tensor  # [rank, in·kh·kw]
    scale: float
    shape: tuple[int, ...]
    bias: Tensor | None = None
    asks_base = True

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.b_down.shape[0]

    def dense(self, device: Device = None) -> Tensor:
        """Without a base only the B product, fp32 [out, in·kh·kw]; update(base) has both."""
        return (widen(self.b_up, device) @ widen(self.b_down, device)).mul_(self.scale)

    def update(self, base: Tensor) -> Tensor:
        a_up, a_down = widen(self.a_up, base.device), widen(self.a_down, base.device)
        w = base.reshape(base.shape[0], a_up.shape[0], -1)  # [out, in, kh·kw]
        wa = torch.einsum("oik,ir,rj->ojk", w, a_up, a_down)
        return wa.reshape(base.shape).mul_(self.scale).add_(self.dense(base.device))
