"""Theorems: weights of any sizes are computed in one lent piece of memory, some rows at a time, and leave no trace in each
other; it is counted, and given back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine import merge
from klora_lib.engine.memory import MemoryBudget
from klora_lib.engine.merge import Merged
from klora_lib.engine.session import Placed, Session
from klora_lib.engine.site import Site
from klora_lib.engine.standing import apply_throughout
from klora_lib.numerics import exact_math

from .cases import CPU, LAYERS, Duo, duo, make_layer, same, site_of, snapshot
from .stack import prepare
from .test_merge import check_rounded

HALF = torch.bfloat16
TILES = (1, 100, 200, 1 << 20)  # bytes: less than a row, some rows and a rest, all rows
ORDER = ("conv 3×3", "linear", "channels_last", "rows of a fused linear", "inpainting", "conv 1×1", "wider linear")


def weights_of(
    layer: str, tile: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, free: float = float("inf")
) -> Tensor:
    monkeypatch.setattr(merge, "CACHED", tile)
    module = make_layer(layer, dtype)
    with exact_math(CPU):
        Merged(site_of(layer, module), duo(layer, "lora", "fused").deltas, CPU, MemoryBudget(free)).show(3)
    return module.weight


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16, torch.float64])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("layer", LAYERS)
def test_some_rows_at_a_time_are_the_whole_weight(
    layer: str, tile: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, two = make_layer(layer, dtype), duo(layer, "lora", "fused")
    want = two.weight(site_of(layer, module), module.weight, 3)
    check_rounded(weights_of(layer, tile, dtype, monkeypatch), want, module.weight)


@pytest.mark.parametrize("tile", TILES)
def test_layers_of_any_size_share_the_memory_and_meet_in_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger after smaller and smaller after larger, one type after another: each is as if it were alone."""
    monkeypatch.setattr(merge, "CACHED", tile)
    budget, shown = MemoryBudget(float("inf")), []
    for dtype in (HALF, torch.float16, HALF):
        for layer in ORDER:
            module, two = make_layer(layer, dtype), duo(layer, "lora", "lora")
            actor = Merged(site_of(layer, module), two.deltas, CPU, budget)
            with exact_math(CPU):
                actor.show(1)
            shown.append((layer, module, two, snapshot(module), make_layer(layer, dtype), actor))
    for layer, module, two, then, base, _ in shown:
        assert same(module, then), "a later layer has written into this one"
        check_rounded(module.weight, two.weight(site_of(layer, base), base.weight, 1), base.weight)
    for _, module, _, _, base, actor in reversed(shown):
        with exact_math(CPU):
            actor.close()
        assert same(module, snapshot(base))


def test_one_piece_of_memory_serves_all_switches_and_is_no_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "CACHED", 100)
    budget = MemoryBudget(1e6)
    lent: list[int] = []
    two: Duo = duo("linear", "lora", "lora")
    for _ in range(3):
        module = make_layer("linear", HALF)
        with exact_math(CPU):
            Merged(Site(module), two.deltas, CPU, budget).show(3)
        assert budget.scratch is not None and budget.scratch.nbytes <= 100
        lent.append(budget.scratch.data_ptr())
    assert len(set(lent)) == 1
    assert budget.free == 1e6 - budget.scratch.nbytes
    budget.drop_scratch()
    assert budget.free == 1e6 and budget.scratch is None


def test_where_it_does_not_fit_it_is_not_kept_and_the_weight_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, module = MemoryBudget(10), make_layer("linear", HALF)
    with exact_math(CPU):
        Merged(Site(module), duo("linear", "lora", "fused").deltas, CPU, budget).show(3)
    assert budget.scratch is None and budget.free == 10
    assert torch.equal(module.weight, weights_of("linear", merge.CACHED, HALF, monkeypatch))


def test_a_larger_layer_replaces_it_and_is_refused_without_losing_count() -> None:
    budget = MemoryBudget(150)
    small, large = (budget.lend((n,), torch.float32, CPU) for n in (25, 30))
    assert budget.free == 30 and large.numel() == 30 and small.numel() == 25
    assert budget.lend((50,), torch.float32, CPU).numel() == 50
    assert budget.scratch is None and budget.free == 150


@pytest.mark.parametrize("end", ["close", "aside"])
def test_a_session_gives_it_back(end: str) -> None:
    module = make_layer("linear", HALF)
    session = Session(prepare().plan, [Placed(None, 3, Site(module), duo("linear", "lora", "lora").deltas)], "merge", CPU)
    session.advance(0.0)
    assert session.budget.scratch is not None
    if end == "close":
        session.close()
        assert session.budget.scratch is None
        return
    with session.aside():
        assert session.budget.scratch is None
    session.close()


def test_a_weight_that_is_wide_itself_borrows_nothing() -> None:
    budget = MemoryBudget(float("inf"))
    module: nn.Module = make_layer("linear")
    with exact_math(CPU):
        Merged(Site(module), duo("linear", "lora", "lora").deltas, CPU, budget).show(3)
    assert budget.scratch is None


def test_updates_that_stay_throughout_keep_no_memory_to_compute_in() -> None:
    budget, module = MemoryBudget(1e6), make_layer("linear", HALF)
    actor, before = Merged(Site(module), duo("linear", "lora", "lora").deltas, CPU, budget), snapshot(module)
    with apply_throughout([actor], CPU):
        assert not same(module, before)
        assert budget.scratch is None and budget.free == 1e6
    assert same(module, before)
