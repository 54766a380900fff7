"""Energies ‖ΔW‖² = Σ ΔW², from small matrices wherever a module has factors: what EST-LoRA compares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import LoraFileError
from ..lora.deltas import Delta, Device, Dora, Fused, overflows, widen
from ..lora.factors import compute_gram, normalise
from ..lora.lycoris import Lokr, multiply_factors
from ..numerics import exact_math
from ..settings import Settings
from .pairing import Unit
from .scoring import Scores, Weights, choose_k, find_largest, run_where_memory_is, score_units
from .selectors import BY_ENERGY
from .watch import Watch, ignore

SAFE = 1e-25, 1e30  # of a sum of squares: neither it overflowed, nor did anything that matters in it vanish
LARGEST = float(torch.finfo(torch.float32).max)
SMALL = 1e-30  # a norm below this may be that of an update without a number in fp32


def measure_pair(
    units: Sequence[Unit], settings: Settings, device: torch.device, free: float, weights: Weights | None = None
) -> Scores:
    """What the method of ``settings`` compares: Top-K sums, or energies, which cost a small part of these."""
    if settings.method in BY_ENERGY:
        return compute_energies(units, device, free, weights)
    return score_units(units, settings.k, device, free, weights)


def compute_energies(
    units: Sequence[Unit], device: torch.device, free: float = math.inf, weights: Weights | None = None,
    watch: Watch = ignore,
) -> Scores:  # fmt: skip
    """Energies of every unit, as ``squared`` Scores; of OFT, BOFT and IA3 those of W' − W, as in ``scoring.score``.

    Args: device: where matrices are multiplied.  free: bytes of it that may be used; else the CPU does it.  weights: needed
        where a unit is ``relative``.
    Raises LoraFileError that names role and layer where an update has no numbers in fp32, and PairError where not even the
    CPU has the memory.
    """
    return run_where_memory_is(units, device, free, lambda there: compute_energies_on(units, there, weights, watch))


def compute_energies_on(
    units: Sequence[Unit], device: torch.device, weights: Weights | None, watch: Watch
) -> Scores:
    ks, rows = [], []
    with exact_math(device):
        for unit in units:
            watch()
            base = weights(unit, device) if unit.relative and weights is not None else None
            ks.append(choose_k(unit, "all", base))
            rows.append([measure_role(role, unit, device, base) for role in ("content", "style")])
    content, style = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return Scores(tuple(ks), content, style, content, style, squared=True)


def measure_role(role: str, unit: Unit, device: torch.device, base: Tensor | None) -> float:
    """The energy of one LoRA in a unit: 0 where it is absent, and where fp32 has no number for any of its elements."""
    delta: Delta | None = getattr(unit, role)
    if delta is None or (unit.relative and base is None):
        return 0.0
    if delta.relative:
        assert base is not None
        found = sum_squares(delta.update(base))
        if not math.isfinite(found):
            raise LoraFileError(f"{unit.name} cannot be used: its update is too large for fp32", role)
        return found
    found = compute_energy(delta, device)
    norm = math.sqrt(found) if math.isfinite(found) else math.inf  # no element is larger
    if norm > LARGEST and overflows(delta):
        said = f"its update is too large for fp32, with numbers up to {find_largest(delta):.3g}"
        raise LoraFileError(f"{unit.name} cannot be used: {said}", role)
    return 0.0 if norm < SMALL and not bool(delta.dense().any()) else found


def compute_energy(delta: Delta, device: Device = None) -> float:
    """‖ΔW‖² of scale·up @ down is scale²·Σ (upᵀup)∘(down downᵀ): two small matrices, whose product is summed in fp64.

    A fused module's is the sum of its parts', a Kronecker product's the product of its factors'.  What is left is formed.
    """
    if isinstance(delta, Dora):  # its low-rank product is what the rule looks at
        return compute_energy(delta.inner, device)
    if isinstance(delta, Fused):
        return sum(compute_energy(part, device) for part in delta.known)
    if isinstance(delta, Lokr):
        one, two = (sum_squares(multiply_factors(w, device)) for w in (delta.w1, delta.w2))
        return delta.scale**2 * one * two
    low_rank = delta.factors()
    if low_rank is None:
        return sum_squares(delta.dense(device))
    up, down, scale = low_rank
    products = compute_gram(widen(up, device).T), compute_gram(widen(down, device))
    if not all(SAFE[0] < float(p.trace()) < SAFE[1] for p in products):  # squares that fp32 does not hold
        (up, a), (down, b) = (normalise(t, device) for t in (up, down))
        products, scale = (compute_gram(up.T), compute_gram(down)), scale * a * b
    return max(0.0, float((products[0] * products[1]).sum())) * scale**2


def sum_squares(matrix: Tensor) -> float:
    """Σ x²: rows in fp32, their sum in fp64."""
    x, size = normalise(matrix)
    return float(x.square().sum(-1).cpu().double().sum()) * size**2
