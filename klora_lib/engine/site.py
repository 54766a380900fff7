"""Where one unit acts in a loaded model, and what is to act there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..devices import move
from ..lora.deltas import Delta
from ..rule.selectors import CONTENT, STYLE


def stored_weight(module: nn.Module) -> Tensor:
    """The weight as numbers, fp32.  Right for every float storage; hosts with packed weights bring their own reader."""
    return module.weight.detach().float()  # type: ignore[operator]


class Packed(NamedTuple):
    """What a host tells of a weight that is not plain numbers of its own shape: such a weight is read, never written."""

    kind: str  # as a refusal calls it, "bitsandbytes nf4 weights"
    shape: tuple[int, ...]  # of the numbers


@dataclass(frozen=True)
class Site:
    """A weight of the loaded denoiser, or the output ``rows`` [first, last) of a fused one."""

    module: Any  # an nn.Module with a weight; torch types its attributes as Tensor | Module
    rows: tuple[int, int] | None = None
    read: Callable[[nn.Module], Tensor] = stored_weight
    packed: Packed | None = None

    def part(self, tensor: Tensor) -> Tensor:
        """The rows of ``tensor`` ([out, …]) that belong to this site, as a view."""
        return tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]

    def numbers(self, device: torch.device) -> Tensor:
        """This site's part of the weight, fp32 on ``device``.  Plain weights cross in their own type."""
        plain = self.read is stored_weight
        return move(self.part(self.module.weight.detach() if plain else self.read(self.module)), device, torch.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this site's part of the weight."""
        shape = self.packed.shape if self.packed else tuple(self.module.weight.shape)
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])


@dataclass(frozen=True)
class Load:
    """What one LoRA of the pair brings to a site: its module, and the user's weight for it."""

    delta: Delta
    weight: float


@dataclass(frozen=True)
class Loads:
    """Content's and style's load on one site; either may be absent."""

    content: Load | None
    style: Load | None

    def chosen(self, mask: int) -> list[Load]:
        """The loads that a mask of the plan lets act."""
        pairs = ((CONTENT, self.content), (STYLE, self.style))
        return [load for bit, load in pairs if mask & bit and load is not None]

    @property
    def columns(self) -> int | None:
        """in·kh·kw of ΔW.  A first layer may have more (see ``fit.widened``): its further channels get no update.

        None where no file tells it (OFT of the output, IA3): all of them.
        """
        loads = [load for load in (self.content, self.style) if load is not None]
        return max(math.prod(load.delta.shape[1:]) for load in loads) or None

    @property
    def with_weight(self) -> bool:
        """False for biases alone (1-D, on a layer with a matrix)."""
        return any(load is not None and len(load.delta.shape) > 1 for load in (self.content, self.style))

    @property
    def scales_bias(self) -> bool:
        """Whether a load multiplies the layer's bias, if that has one."""
        return any(load is not None and load.delta.bias_factor is not None for load in (self.content, self.style))

    @property
    def with_bias(self) -> bool:
        return any(load is not None and load.delta.bias is not None for load in (self.content, self.style))


class Actor(Protocol):
    """One site during one pass.  ``show`` may be called with any mask at any time; ``close`` undoes all of it."""

    site: Site

    def show(self, mask: int) -> None: ...

    def close(self) -> None: ...

    def written(self) -> list[Tensor]:
        """The model's tensors that carry our choice now."""

    def attached(self) -> bool:
        """Whether what we hung on the layer is still there."""
