"""Where one unit acts in a loaded model, and what is to act there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..devices import move
from ..lora.deltas import Delta
from ..rule.selectors import CONTENT, STYLE
from .memory import Claims


def read_stored_weight(module: nn.Module) -> Tensor:
    """The weight in fp32.  Works for every float type; hosts with packed weights have a reader of their own."""
    return module.weight.detach().float()  # type: ignore[operator]


class Packed(NamedTuple):
    """A weight that the host stores packed (quantised): we read it and never write it."""

    kind: str  # its name in messages: "bitsandbytes nf4 weights"
    shape: tuple[int, ...]  # of the unpacked weight


@dataclass(frozen=True)
class Site:
    """A weight of the loaded denoiser, or the output ``rows`` [first, last) of a fused one."""

    module: Any  # an nn.Module with a weight; torch types its attributes as Tensor | Module
    rows: tuple[int, int] | None = None
    read: Callable[[nn.Module], Tensor] = read_stored_weight
    packed: Packed | None = None

    def take_part(self, tensor: Tensor) -> Tensor:
        """The rows of ``tensor`` ([out, …]) that belong to this site, as a view."""
        return tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]

    def read_weight(self, device: torch.device) -> Tensor:
        """This site's part of the weight, fp32 on ``device``.  A plain weight is copied to it in its own type."""
        plain = self.read is read_stored_weight
        return move(self.take_part(self.module.weight.detach() if plain else self.read(self.module)), device, torch.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this site's part of the weight."""
        shape = self.packed.shape if self.packed else tuple(self.module.weight.shape)
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])


@dataclass(frozen=True)
class WeightedDelta:
    """One LoRA's update of a site, and the user's weight for it."""

    delta: Delta
    weight: float


@dataclass(frozen=True)
class SiteDeltas:
    """The updates of content and style on one site; either may be absent."""

    content: WeightedDelta | None
    style: WeightedDelta | None

    @property
    def present(self) -> list[Delta]:
        return [weighted.delta for weighted in (self.content, self.style) if weighted is not None]

    def choose(self, mask: int) -> list[WeightedDelta]:
        """The updates that act under a mask of the plan."""
        pairs = ((CONTENT, self.content), (STYLE, self.style))
        return [weighted for bit, weighted in pairs if mask & bit and weighted is not None]

    @property
    def with_weight(self) -> bool:
        """False for biases alone (1-D, on a layer with a matrix)."""
        return any(len(delta.shape) > 1 for delta in self.present)

    @property
    def scales_bias(self) -> bool:
        """Whether an update multiplies the layer's bias, if it has one."""
        return any(delta.bias_factor is not None for delta in self.present)

    @property
    def merges_only(self) -> bool:
        return any(weighted is not None and weighted.delta.merges_only for weighted in (self.content, self.style))

    @property
    def with_bias(self) -> bool:
        return any(delta.bias is not None for delta in self.present)


class Actor(Protocol):
    """One site during one pass.  ``show`` may be called with any mask at any time; ``close`` undoes all of it."""

    site: Site
    claims: Claims

    def show(self, mask: int) -> None: ...

    def close(self) -> None: ...

    def list_written(self) -> list[Tensor]:
        """The model's tensors that we have written."""

    def is_attached(self) -> bool:
        """Whether our hook is still on the layer."""
