"""Modules whose rows a file groups or orders otherwise than the model: XLabs' single qkv, diffusers' scale and shift."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from .deltas import Delta, Device, Lora, Norm
from .keys import members

# Flux and SD3 in diffusers' names; Qwen-Image, whose norm_out is in diffusers' order in every host, has none of these
FLUX_OR_SD3 = re.compile(r"single_transformer_blocks\.|transformer_blocks\.\d+\.(?:ff|ff_context|norm1|norm1_context)\.")


@dataclass(frozen=True, eq=False)
class Swapped(Delta):
    """A module whose halves of output rows stand the other way round in the model: scale and shift, shift and scale."""

    inner: Delta

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.shape

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.inner.rank

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.inner.accepts(shape)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return None if self.inner.bias is None else halves_swapped(self.inner.bias)

    @property
    def bias_factor(self) -> Tensor | None:
        return None if self.inner.bias_factor is None else halves_swapped(self.inner.bias_factor)

    def dense(self, device: Device = None) -> Tensor:
        return halves_swapped(self.inner.dense(device))

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        low_rank = self.inner.factors()
        return low_rank and (halves_swapped(low_rank[0]), *low_rank[1:])

    def update(self, base: Tensor) -> Tensor:
        return halves_swapped(self.inner.update(halves_swapped(base)))


def halves_swapped(tensor: Tensor) -> Tensor:
    """[a; b] -> [b; a], as a copy."""
    return tensor.roll(tensor.shape[0] // 2, 0)


def as_in_the_model(deltas: Mapping[str, Delta], written: Mapping[str, str]) -> dict[str, Delta]:
    """``deltas`` (by layer) under the layers, and with the rows, of the makers' Flux and SD3.

    diffusers has scale above shift where the makers have shift above scale: in the last norm of both models, and in the
    context's norm of SD3's last block, the only one with two parts where the others have six.

    Args: written: a key of each layer, as in the file.
    """
    makers = any(FLUX_OR_SD3.match(layer) for layer in deltas)
    out: dict[str, Delta] = {}
    for layer, delta in deltas.items():
        if layer == "norm_out.linear" and makers:
            out["final_layer.adaLN_modulation.1"] = swapped(delta)
        elif layer.endswith(".norm1_context.linear") and two_parts(delta) and "norm1_context" in written[layer]:
            out[layer] = swapped(delta)
        else:
            out.update(split_single(layer, delta))
    return out


def two_parts(delta: Delta) -> bool:
    """Twice as many rows as columns."""
    return len(delta.shape) == 2 and delta.shape[0] == 2 * delta.shape[1]


def swapped(delta: Delta) -> Delta:
    if isinstance(delta, Swapped):
        return delta.inner
    if isinstance(delta, Norm):  # here a bias alone
        return replace(delta, bias=None if delta.bias is None else halves_swapped(delta.bias))
    return Swapped(delta)


def split_single(layer: str, delta: Delta) -> list[tuple[str, Delta]]:
    """XLabs' qkv of a Flux single block as its three projections: no model and no other file has that weight."""
    names = members(layer) if layer.startswith("single_") and layer.endswith(".to_qkv") else ()
    if not names or not isinstance(delta, Lora) or delta.shape[0] % 3:
        return [(layer, delta)]
    shape = delta.shape[0] // 3, *delta.shape[1:]
    return [(one, replace(delta, up=up, shape=shape)) for one, up in zip(names, delta.up.chunk(3), strict=True)]
