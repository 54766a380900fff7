"""The scores of a pair: for each layer the Top-K sums S_c and S_s, and the absolute sums from which γ is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..devices import find_tensors, is_out_of_memory, move
from ..errors import LoraFileError, PairError
from ..lora.deltas import Delta, Dora, Fused, count_columns, widen
from ..numerics import exact_math
from .largest import keep_largest
from .pairing import Unit
from .watch import Watch, ignore

T = TypeVar("T")
# (unit, device) -> the model's weight of it, fp32 [out, in·kh·kw] on that device; None where the model has none
Weights = Callable[[Unit, torch.device], "Tensor | None"]
Sum = Tensor | float  # a sum that a GPU still computes is a tensor there
CACHED = 1 << 21  # elements of a part of a product: 8 MB, which a processor's cache holds
ON_DEVICE = 1 << 24  # the same on a GPU


@dataclass(frozen=True)
class Scores:
    """Columns over units, float64 ``[units]``; a LoRA that is absent from a unit has rank and sums 0 there.

    squared: the elements were squared, and K is all of them: every column is then the energy ‖ΔW‖².
    directions: of each unit, for the method np: those that hold most of a style's energy, where it has no two factors.
    """

    k: tuple[int, ...]
    content_topk: Tensor
    style_topk: Tensor
    content_abs: Tensor
    style_abs: Tensor
    squared: bool = False
    directions: tuple[Tensor | None, ...] = ()  # each fp32 [in·kh·kw, k], orthonormal

    def about(self, i: int) -> Scores:
        """The scores of unit ``i`` alone."""
        one = slice(i, i + 1)
        return Scores(
            self.k[one], self.content_topk[one], self.style_topk[one], self.content_abs[one], self.style_abs[one],
            self.squared, self.directions[one] or (None,),
        )  # fmt: skip


def choose_k(unit: Unit, k: str | int, base: Tensor | None = None) -> int:
    """K = r_c·r_s (paper, equation 4), at most the element count (of ``base``).  An absent LoRA counts as rank 1."""
    elements = unit.elements if base is None else base.numel()
    if k == "all":
        return max(1, elements)
    content, style = unit.content, unit.style
    wanted = k if isinstance(k, int) else (content.rank if content else 1) * (style.rank if style else 1)
    return max(1, min(wanted, elements))


def compute_sums(delta: Delta, k: int | None, scratch: Tensor, base: Tensor | None = None) -> tuple[Sum, Sum]:
    """(sum of the k largest |ΔW|, sum of all |ΔW|), in fp32 from ΔW = scale·up @ down, on the device of ``scratch``.

    k: None is all.
    """
    largest = None if k is None else keep_largest(k, scratch.device)
    total: Sum = 0.0
    for part in list_parts(delta, scratch, base):
        total = total + read_number(part.sum())
        if largest is not None:
            largest.add(part)
    return total if largest is None else largest.sum(), total


def read_number(x: Tensor) -> Sum:
    """A GPU is not waited for.  In host memory a tensor that stays, among large ones that go, would leave holes."""
    return x.item() if x.device.type == "cpu" else x


def list_parts(delta: Delta, scratch: Tensor, base: Tensor | None) -> Iterator[Tensor]:
    """|ΔW| without its rows of zeros, in parts: fp32, flat, on the device of ``scratch`` (fp32, flat).

    A product of factors is made inside it, as many rows at a time as go into it: new memory for every product would cost as
    much time again in page faults, and a part of this size stays in the processor's cache.
    """
    if delta.relative:
        assert base is not None
        yield delta.update(base).abs_().reshape(-1)
        return
    if isinstance(delta, Dora):  # its low-rank product is what the rule looks at
        delta = delta.inner
    if isinstance(delta, Fused):
        for part in delta.known:
            yield from list_parts(part, scratch, base)
        return
    low_rank = delta.factors()
    if low_rank is None:
        yield from delta.dense(scratch.device).abs_().reshape(-1).split(scratch.numel())
        return
    up, down, scale = low_rank  # up: [out, rank], down: [rank, in·kh·kw]
    up, down = (move(t, scratch.device, torch.float32) for t in (up, down))
    up = up * scale
    parts = math.ceil(up.shape[0] / (scratch.numel() // down.shape[1]))
    for rows in up.tensor_split(parts):
        product = scratch[: rows.shape[0] * down.shape[1]].view(rows.shape[0], down.shape[1])
        torch.mm(rows, down, out=product)
        yield product.view(-1).abs_()


def find_largest(delta: Delta) -> float:
    """The largest absolute value in a module's tensors."""
    return max((float(widen(t).abs().max()) for t in find_tensors(delta)), default=0.0)


def vanishes(delta: Delta) -> bool:
    """Whether ΔW is zero in fp32 only because its numbers are so small: none of its tensors is all zero."""
    return not delta.relative and all(bool(widen(t).any()) for t in find_tensors(delta)) and not bool(delta.dense().any())


def score_units(
    units: Sequence[Unit], k: str | int, device: torch.device, free: float = math.inf, weights: Weights | None = None,
    watch: Watch = ignore,
) -> Scores:  # fmt: skip
    """Scores of every unit: one product per LoRA and unit, of which only four numbers are kept.

    OFT, BOFT and IA3 are scored by what they add to the weight, ΔW = W' − W, because only this can be compared with a LoRA's
    ΔW.  (The distance of R from I ignores how large the weights are, and one γ for all layers cannot correct that.)  So
    these units need the loaded model.  If it lacks a layer, nothing acts there, and its sums are 0.

    Args: k: "auto", "all" or K itself.  device: computes the products.  free: bytes of it that may be used; if they are too
        few, or the device runs out of memory, the CPU computes.  weights: needed if a unit is ``relative``.
    Raises LoraFileError, with role and layer, if an update is too large for fp32, and PairError if the CPU has too little
    memory too.
    """
    return run_where_memory_is(units, device, free, lambda there: score_units_on(units, k, there, weights, watch))


def run_where_memory_is(
    units: Sequence[Unit], device: torch.device, free: float, act: Callable[[torch.device], T]
) -> T:
    """``act`` on ``device``, or on the CPU: see ``score_units``."""
    cpu = torch.device("cpu")
    bytes_needed = PRODUCTS * 4 * max((unit.elements for unit in units), default=0)
    if device.type != "cpu" and bytes_needed <= free:
        try:
            return act(device)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
    try:
        return act(cpu)
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise PairError(f"there is no memory to compare the two LoRAs: {bytes_needed >> 20} MB are needed for "
                        f"{max(units, key=lambda u: u.elements).name}") from e  # fmt: skip


PRODUCTS = 4  # the most copies of one ΔW in fp32 that are alive at a time: scratch, a dense update and what Top-K gathers


def score_units_on(
    units: Sequence[Unit], k: str | int, device: torch.device, weights: Weights | None, watch: Watch
) -> Scores:
    ks: list[int] = []
    sums: list[Sum] = []  # of each unit: Top-K of content and style, then all of content and style
    with exact_math(device):
        scratch = make_scratch(units, device)
        for unit in units:
            watch()
            base = weights(unit, device) if unit.relative and weights is not None else None
            n = choose_k(unit, k, base)
            pair = [score_update(unit, delta, n, scratch, base) for delta in (unit.content, unit.style)]
            ks.append(n)
            sums += [*(topk for topk, _ in pair), *(total for _, total in pair)]
    rows = read_sums(sums).reshape(-1, 4)  # outside: whoever has the scores may write them
    refuse_too_large(units, rows[:, 2:])
    content, style, content_abs, style_abs = rows.unbind(1)
    return Scores(tuple(ks), content, style, content_abs, style_abs)


def make_scratch(units: Sequence[Unit], device: torch.device) -> Tensor:
    """Memory for a part of a product: whole rows of the widest unit."""
    most = CACHED if device.type == "cpu" else ON_DEVICE
    sizes = [(unit.elements, count_columns(unit.shape)) for unit in units]
    return torch.empty(max((min(n, max(most, columns)) for n, columns in sizes), default=0), device=device)


def score_update(
    unit: Unit, delta: Delta | None, k: int, scratch: Tensor, base: Tensor | None
) -> tuple[Sum, Sum]:
    if delta is None or (unit.relative and base is None):
        return 0.0, 0.0
    elements = unit.elements if base is None else base.numel()
    return compute_sums(delta, k if k < elements else None, scratch, base)


def read_sums(sums: Sequence[Sum]) -> Tensor:
    """fp64, in host memory.  A GPU is waited for once, here."""
    there = [x.reshape(()) for x in sums if isinstance(x, Tensor)]
    found = iter(torch.stack(there).cpu().double().tolist() if there else ())
    return torch.tensor([next(found) if isinstance(x, Tensor) else x for x in sums], dtype=torch.float64)


def refuse_too_large(units: Sequence[Unit], totals: Tensor) -> None:
    """Raise LoraFileError where an update, or the sum of its elements, is too large for fp32.  totals: [units, 2]"""
    if bool(totals.isfinite().all()):
        return
    i, column = (~totals.isfinite()).nonzero()[0].tolist()
    role = ("content", "style")[column]
    said = f"its update is too large for fp32, with numbers up to {find_largest(getattr(units[i], role)):.3g}"
    raise LoraFileError(f"{units[i].name} cannot be used: {said}", role)
