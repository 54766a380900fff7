"""Output rows of a module: a part of them, or all in another order.

A model can have one weight for several modules of a file, or several weights for one.  In some layers diffusers stores scale
above shift, and the makers of Flux and SD3 store shift above scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..errors import PairError
from .combined import Elected, Projected
from .deltas import UNKNOWN, Delta, Device, Dora, Full, Fused, Lora, Norm
from .keys import QKV, list_members
from .lycoris import Glora
from .multiplied import Scaled, Turned

Pieces = tuple[tuple[int, int], ...]  # [first row, row after the last) of each


@dataclass(frozen=True, eq=False)
class Rows(Delta):
    """The rows ``pieces`` of ``inner``, from the top down.

    If these are all rows in another order, ``inner`` may depend on the weight (DoRA, GLoRA); if only some, it must not.
    """

    inner: Delta
    pieces: Pieces

    @property
    def merges_only(self) -> bool:  # type: ignore[override]
        return self.inner.merges_only

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return sum(last - first for first, last in self.pieces), *self.inner.shape[1:]

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.inner.rank

    @property
    def asks_base(self) -> bool:  # type: ignore[override]
        return self.inner.asks_base

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.inner.accepts(shape)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return None if self.inner.bias is None else take_rows(self.inner.bias, self.pieces)

    @property
    def bias_factor(self) -> Tensor | None:
        return None if self.inner.bias_factor is None else take_rows(self.inner.bias_factor, self.pieces)

    def dense(self, device: Device = None) -> Tensor:
        return take_rows(self.inner.dense(device), self.pieces)

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        low_rank = self.inner.factors()
        return low_rank and (take_rows(low_rank[0], self.pieces), *low_rank[1:])

    def update(self, base: Tensor) -> Tensor:
        if self.shape[0] < self.inner.shape[0]:
            return self.dense(base.device)
        return take_rows(self.inner.update(take_rows(base, invert_pieces(self.pieces))), self.pieces)


def take_rows(tensor: Tensor, pieces: Pieces) -> Tensor:
    """A copy of these rows."""
    return torch.cat([tensor[first:last] for first, last in pieces])


def invert_pieces(pieces: Pieces) -> Pieces:
    """The pieces that bring rows taken by ``pieces`` back into their old order."""
    ends = [0, *accumulate(last - first for first, last in pieces)]
    return tuple(place for _, place in sorted(zip(pieces, pairwise(ends))))


# --- some rows ---


def cut_rows(delta: Delta | None, first: int, last: int) -> Delta | None:
    """Output rows [first, last) of ``delta``; None if it is zero there by construction.

    Raises PairError for a DoRA with a norm over all rows: a model that has the layer split knows only a part of them.
    """
    if delta is None or (isinstance(delta, Fused) and is_absent(delta, first, last)):
        return None
    shape, bias = (last - first, *delta.shape[1:]), cut_tensor(delta.bias, first, last)
    if isinstance(delta, Fused):
        return cut_member(delta, first, last)
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
        return Norm(cut_tensor(delta.weight, first, last), bias)
    if isinstance(delta, Dora) and delta.magnitude.shape[0] == delta.shape[0]:
        inner = cut_rows(delta.inner, first, last)
        return inner and Dora(inner, delta.magnitude[first:last])
    if isinstance(delta, Dora):
        raise PairError("a DoRA by input channel of a fused layer cannot act on this model, which has the layer split")
    if isinstance(delta, Projected):
        inner = cut_rows(delta.inner, first, last)
        return inner and replace(delta, inner=inner)
    if isinstance(delta, Elected) and delta.asks_base:
        raise PairError("ties of a DoRA or its like in a fused layer cannot act on this model, which has the layer split")
    if isinstance(delta, Rows):
        raise PairError("a part of a layer whose rows are in another order than in the file is not known")
    return Rows(delta, ((first, last),))


def is_absent(delta: Fused, first: int, last: int) -> bool:
    return all(part is None for part, top, end in list_stacked(delta) if top < last and first < end)


def cut_member(delta: Fused, first: int, last: int) -> Delta | None:
    """The one part in the rows [first, last).  A member of a fused layer has the same number of rows everywhere."""
    inside = [(part, top) for part, top, end in list_stacked(delta) if top <= first and last <= end]
    if not inside:
        raise PairError(f"rows {first} to {last} of a fused layer are those of several of the LoRA's modules")
    part, top = inside[0]
    whole = part is not None and part.shape[0] == last - first
    return part if whole else cut_rows(part, first - top, last - top)


def list_stacked(delta: Fused) -> list[tuple[Delta | None, int, int]]:
    """(part, first row, row after its last)."""
    ends = [0, *accumulate(delta.rows)]
    return [(part, top, end) for part, (top, end) in zip(delta.parts, pairwise(ends))]


def find_heights(parts: Sequence[Delta | None], rows: int, width: int) -> list[int]:
    """Output rows of each part of a fused weight of ``rows`` rows and ``width`` columns, None being one that is absent.

    k and v are equally tall, and less than q where they have fewer heads. With an mlp behind them, absent q, k and v are
    as tall as the layer is wide, and an absent mlp takes what is left.  Where ``rows`` is UNKNOWN, q, k and v are as tall
    as the layer is wide, and a part behind them stays UNKNOWN.
    """
    tall = [part.shape[0] if part is not None else UNKNOWN for part in parts]
    missing = [i for i, height in enumerate(tall) if height == UNKNOWN]
    if rows == UNKNOWN:
        return [height or (width if i < len(QKV) else UNKNOWN) for i, height in enumerate(tall)]
    if missing == [1, 2] and len(parts) == 3:
        tall[1] = (rows - tall[0]) // 2
    elif len(missing) == 2 and len(parts) == 3:  # q and one of k and v
        tall[missing[1]] = max(tall)
        missing = [0]
    else:
        for i in missing[:-1]:
            tall[i] = width
    if missing:
        tall[missing[-1]] = rows - sum(tall)
    return tall


def cut_tensor(tensor: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if tensor is None else tensor[first:last]


# --- all rows, as the makers' models have them ---

# Flux and SD3 in diffusers' names; Qwen-Image, whose norm_out is in diffusers' order in every host, has none of these
FLUX_OR_SD3 = re.compile(r"single_transformer_blocks\.|transformer_blocks\.\d+\.(?:ff|ff_context|norm1|norm1_context)\.")
LUMINA = re.compile(r"(?:layers|noise_refiner|context_refiner)\.\d+\.")
MAKERS_LAST = "final_layer.adaLN_modulation.1"
LUMINA_LAST = {"norm_out.linear_1": MAKERS_LAST, "norm_out.linear_2": "proj_out"}  # diffusers' names


def arrange_rows(modules: Sequence[tuple[str, str, Delta]]) -> list[tuple[str, str, Delta]]:
    """``modules`` under the layers, and with the rows, of the makers' Flux, SD3 and Lumina 2.

    diffusers has scale above shift where the makers have shift above scale: in the last norm of Flux and SD3, and in the
    context's norm of SD3's last block, the only one with two parts where the others have six.

    Args: modules: (layer, the module as the file writes it, Delta).
    """
    makers = any(FLUX_OR_SD3.match(layer) for layer, _, _ in modules)
    lumina = any(LUMINA.match(layer) for layer, _, _ in modules)
    out: list[tuple[str, str, Delta]] = []
    for layer, name, delta in modules:
        if layer == "norm_out.linear" and makers:
            out.append((MAKERS_LAST, name, swap_halves(delta)))
        elif layer in LUMINA_LAST and lumina:
            out.append((LUMINA_LAST[layer], name, delta))
        elif layer.endswith(".norm1_context.linear") and has_two_parts(delta) and "norm1_context" in name:
            out.append((layer, name, swap_halves(delta)))
        else:
            out += [(part, name, rows) for part, rows in split_single(layer, delta)]
    return out


def has_two_parts(delta: Delta) -> bool:
    """Whether it has twice as many rows as columns."""
    return len(delta.shape) == 2 and delta.shape[0] == 2 * delta.shape[1]


def swap_halves(delta: Delta) -> Delta:
    """``delta`` with the halves of its rows the other way round: scale and shift, shift and scale."""
    if isinstance(delta, Rows) and delta.shape == delta.inner.shape:
        return delta.inner
    half, whole = delta.shape[0] // 2, delta.shape[0]
    pieces = (half, whole), (0, half)
    if isinstance(delta, Norm):  # here a bias alone
        return replace(delta, bias=None if delta.bias is None else take_rows(delta.bias, pieces))
    return Rows(delta, pieces)


def split_single(layer: str, delta: Delta) -> list[tuple[str, Delta]]:
    """A qkv of a Flux single block (XLabs, Flux.2) as three projections, since no model has such a weight."""
    names = list_members(layer) if layer.startswith("single_") and layer.endswith(".to_qkv") else ()
    by_input = isinstance(delta, Dora) and delta.magnitude.shape[0] != delta.shape[0]
    height = delta.shape[0] // 3
    if not names or delta.shape[0] % 3 or by_input:
        return [(layer, delta)]
    parts = [cut_rows(delta, i * height, (i + 1) * height) for i in range(3)]
    return [(name, part) for name, part in zip(names, parts) if part is not None]
