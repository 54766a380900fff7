"""Scoring a full-size pair against its bare products, ``est`` and ``np``; the sums against brute force; the peak of memory.

``python -m tests.bench.scoring sdxl 32 64 cpu`` prints the peak alone, for ``run_fresh``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from klora_lib.devices import move
from klora_lib.lora.deltas import Delta
from klora_lib.numerics import exact_math
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, Unit
from klora_lib.rule.scoring import Scores, score_units
from klora_lib.settings import Settings

from .pairs import make_flux_pair, make_sdxl_pair
from .resident import MB, available, measure_peak, run_fresh
from .tables import make_table
from .turns import find_ratios, format_spread, take_turns

MAKE: dict[str, Callable[[tuple[int, int]], Pair]] = {"SDXL": make_sdxl_pair, "Flux": make_flux_pair}
PAIRS = (("SDXL", (8, 8)), ("SDXL", (32, 64)), ("SDXL", (128, 128)), ("Flux", (16, 16)), ("Flux", (32, 64)))
CHECKED = 6  # layers of a pair that are compared with brute force
ALLOWED = 1e-5  # relative, for sums of fp32 products against fp64
HEAD = ("pair", "layers", "K-LoRA", "products", "÷ products", "`est`", "`np`", "memory above the files", "from brute force")


def make_products(pair: Pair, scratch: Tensor) -> None:
    """The floor: every ΔW once, into memory that is there already."""
    with exact_math(scratch.device):
        for unit in pair.units:
            for delta in (unit.content, unit.style):
                write_product(delta, scratch)


def write_product(delta: Delta | None, scratch: Tensor) -> None:
    factors = delta.factors() if delta is not None else None
    assert factors is not None
    up, down = (move(t, scratch.device, torch.float32) for t in factors[:2])
    torch.mm(up, down, out=scratch[: up.shape[0] * down.shape[1]].view(up.shape[0], down.shape[1]))


def sum_by_force(delta: Delta | None, k: int) -> tuple[float, float]:
    """(sum of the k largest |ΔW|, sum of all), from ΔW in fp64 and a search through all of it."""
    factors = delta.factors() if delta is not None else None
    assert factors is not None
    size = (factors[2] * (factors[0].double() @ factors[1].double())).abs().flatten()
    return float(torch.topk(size, min(k, size.numel()), sorted=False).values.sum()), float(size.sum())


def find_difference(units: tuple[Unit, ...], scores: Scores, count: int = CHECKED) -> float:
    """The largest relative difference of the sums from those by force, in ``count`` layers at equal distances."""
    worst = 0.0
    for i in range(0, len(units), max(1, len(units) // count)):
        unit = units[i]
        columns = (scores.content_topk, scores.content_abs), (scores.style_topk, scores.style_abs)
        for delta, (topk, total) in zip((unit.content, unit.style), columns):
            by_force = sum_by_force(delta, scores.k[i])
            worst = max(worst, *(abs(float(c[i]) / f - 1) for c, f in zip((topk, total), by_force)))
    return worst


def measure_pair(name: str, ranks: tuple[int, int], device: torch.device, rounds: int, limit: float) -> list[str]:
    """A row of the table.  limit: seconds after which no further round begins.

    Raises AssertionError if a sum is not the one by force.
    """
    pair = MAKE[name](ranks)
    scratch = torch.empty(max(unit.elements for unit in pair.units), device=device)
    found: list[Scores] = []
    candidates: dict[str, Callable[[], object]] = {
        "bare": lambda: make_products(pair, scratch),
        "klora": lambda: found.append(score_units(pair.units, "auto", device)),
        "est": lambda: Library().measure(pair, Settings(method="est"), device),
        "np": lambda: Library().measure(pair, Settings(method="np"), device),
    }
    for warm in (make_products, lambda one, _: score_units(one.units, "auto", device)):
        warm(Pair(pair.content, pair.style, pair.units[:4], ()), scratch)
    times = take_turns(candidates, rounds, device, limit)
    difference = find_difference(pair.units, found[-1])
    assert difference <= ALLOWED, f"{name} {ranks}: a sum is {difference:.1e} from brute force"
    seconds = {key: f"{median(values):.2f} s" for key, values in times.items()}
    peak = "not measured"
    if available() or device.type == "cuda":
        peak = f"{run_fresh('tests.bench.scoring', name, *map(str, ranks), device.type) / MB:.0f} MB"
    ratio = format_spread(find_ratios(times, "klora", "bare"))
    title = f"{name} {ranks[0]}/{ranks[1]}"
    return [title, str(len(pair.units)), seconds["klora"], seconds["bare"], ratio, seconds["est"], seconds["np"], peak,
            f"{difference:.0e}"]  # fmt: skip


def measure(device: torch.device, quick: bool = False) -> list[str]:
    pairs = PAIRS[:1] if quick else PAIRS
    rows = []
    for name, ranks in pairs:
        rounds, limit = (3, 60.0) if name == "SDXL" else (2, 40.0)
        rows.append(measure_pair(name, ranks, device, 1 if quick else rounds, limit))
    return make_table(HEAD, rows)


def print_peak(name: str, content: str, style: str, kind: str) -> None:
    device, pair = torch.device(kind), MAKE[name]((int(content), int(style)))
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)  # the library of products is loaded, and not ours
    print(json.dumps(measure_peak(lambda: score_units(pair.units, "auto", device), device)))


if __name__ == "__main__":
    print_peak(*sys.argv[1:])
