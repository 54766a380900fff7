"""Theorems: an energy is the sum of the dense squares, for any type and size of number; and nothing is sorted for it."""

from __future__ import annotations

import math

import pytest
import torch

from klora_lib.errors import LoraFileError, PairError
from klora_lib.lora.deltas import Delta, Lora
from klora_lib.lora.multiplied import Scaled
from klora_lib.rule import energies, scoring
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, Unit
from klora_lib.rule.plan import Plan, format_row, make_plan
from klora_lib.settings import Settings

from ..engine.cases import DENSE, DORAS, LOW_RANK, RELATIVE, lora, rand
from ..pairs import Layers, as_file, as_pair, dense, random_layers, scaled

CPU = torch.device("cpu")
STEPS = 30


def plan_of(content: Layers, style: Layers, **given: object) -> Plan:
    pair, settings = as_pair(content, style), Settings(method="est", **given)  # type: ignore[arg-type]
    return make_plan(pair, Library().measure(pair, settings, CPU), settings, STEPS)


def rows(plan: Plan) -> list[str]:
    return [format_row(row) for row in plan.table(STEPS)]


@pytest.mark.parametrize("shape", [(8, 6), (6, 4, 3, 3), (8, 24)])
@pytest.mark.parametrize("kind", [*LOW_RANK, *(kind for kind in DENSE if kind != "glora")])
def test_an_energy_is_the_sum_of_the_dense_squares(kind: str, shape: tuple[int, ...]) -> None:
    delta, step = {**LOW_RANK, **DENSE}[kind](shape, 5)
    columns = math.prod(shape[1:])
    wanted = step(torch.zeros(shape[0], columns, dtype=torch.float64)).square().sum()
    assert energies.compute_energy(delta) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("kind", DORAS)
def test_of_a_dora_the_low_rank_product_counts(kind: str) -> None:
    inner, step = lora((8, 6), 5)
    assert energies.compute_energy(DORAS[kind]((8, 6), 5)[0]) == energies.compute_energy(inner)


@pytest.mark.parametrize("kind", RELATIVE)
def test_of_what_multiplies_the_weight_the_change_of_the_weight_counts(kind: str) -> None:
    (delta, step), base = RELATIVE[kind]((8, 6), 5), rand(8, 6, seed=3)
    unit = Unit("x", delta, lora((8, 6), 5)[0])
    found = energies.compute_energies([unit], CPU, weights=lambda unit, device: base)
    assert float(found.content_topk) == pytest.approx(float(step(base.double()).square().sum()), rel=1e-5)
    assert float(found.style_topk) == pytest.approx(energies.compute_energy(unit.style))
    gone = energies.compute_energies([unit], CPU, weights=lambda unit, device: None)
    assert float(gone.content_topk) == float(gone.style_topk) == 0.0


def test_a_change_of_the_weight_that_is_too_large_is_refused() -> None:
    unit = Unit("x", Scaled(torch.full((8,), 1e30), False), lora((8, 6), 5)[0])
    with pytest.raises(LoraFileError, match="x cannot be used: its update is too large for fp32") as refusal:
        energies.compute_energies([unit], CPU, weights=lambda unit, device: torch.full((8, 6), 1e30))
    assert refusal.value.field == "content"


def test_est_of_such_a_pair_needs_the_model() -> None:
    unit = Unit("x", RELATIVE["ia3"]((8, 6), 5)[0], lora((8, 6), 5)[0])
    pair = Pair(as_file(random_layers(1), "subject"), as_file(random_layers(2), "painter"), (unit,), ())
    with pytest.raises(PairError, match="content: 'subject' is an OFT, BOFT or IA3, .* only with the model"):
        Library().measure(pair, Settings(method="est"), CPU)


def module(up: float, down: float, scale: float = 1.0) -> Lora:
    return Lora(rand(8, 2, seed=1) * up, rand(2, 6, seed=2) * down, scale, (8, 6))


def column(delta: Delta) -> float:
    return float(energies.compute_energies([Unit("x", delta, delta)], CPU).content_topk[0])


@pytest.mark.parametrize(("up", "down"), [(1e25, 1e-25), (1e-30, 1e30), (1e18, 1e18), (1e-12, 1e-12), (1e-20, 1e-15)])
def test_no_number_is_too_large_or_too_small_to_be_squared(up: float, down: float) -> None:
    delta = module(up, down)
    wanted = (delta.up.double() @ delta.down.double()).square().sum()
    assert column(delta) == pytest.approx(float(wanted), rel=1e-5)


def test_what_is_nothing_in_fp32_has_no_energy_and_what_is_too_large_is_refused() -> None:
    """As for Top-K sums: only what can act counts."""
    assert column(module(1e-30, 1e-30)) == 0.0
    with pytest.raises(LoraFileError, match="content: x cannot be used: its update is too large for fp32"):
        column(module(1e25, 1e25))


def test_an_untrained_lora_is_refused_and_one_that_is_too_small() -> None:
    with pytest.raises(PairError, match="content: 'subject' is zero in all"):
        plan_of(scaled(random_layers(1), 0.0), random_layers(2))
    tiny = {name: (up * 1e-30, down * 1e-30, alpha) for name, (up, down, alpha) in random_layers(1).items()}
    with pytest.raises(PairError, match="content: 'subject' is zero in fp32 in all"):
        plan_of(tiny, random_layers(2))


# --- est ---


@pytest.mark.parametrize("seed", range(5))
def test_est_is_its_inequality_on_dense_energies(seed: int) -> None:
    content, style = random_layers(seed, rank=2, alpha=1.0), random_layers(seed + 50, rank=3)
    c, s = ([float(dense(layers[n]).square().sum()) for n in sorted(layers)] for layers in (content, style))
    plan = plan_of(content, style, alpha=1.2, beta=0.3)
    assert [unit.name for unit in plan.units] == sorted(content)
    assert plan.gamma == pytest.approx(sum(c) / sum(s))
    for row, mine, other in zip(rows(plan), c, s):
        for t, letter in enumerate(row):
            threshold = sum(c) / sum(s) * (1.2 * t / STEPS + 0.3) * other
            assert abs(mine / threshold - 1) < 1e-5 or letter == ("C" if mine >= threshold else "S")
    assert len(set(rows(plan))) > 2


@pytest.mark.parametrize("by", [1e-4, 0.3, 1e4])
def test_the_strength_of_a_file_is_not_in_the_choice(by: float) -> None:
    one, two = random_layers(1), random_layers(2)
    before = rows(plan_of(one, two))
    assert rows(plan_of(scaled(one, by), two)) == rows(plan_of(one, scaled(two, by))) == before
    assert rows(plan_of(scaled(one, by), two, gamma=1.0)) != rows(plan_of(one, two, gamma=1.0))


@pytest.mark.parametrize("method", ["est", "np", "blora", "ties"])
def test_nothing_is_sorted_and_nothing_measured_twice(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "score_units", lambda *_: pytest.fail("Top-K was asked for"))
    pair, library, settings = as_pair(random_layers(1), random_layers(2)), Library(), Settings(method=method)
    found = library.measure(pair, settings, CPU)
    monkeypatch.setattr(energies, "compute_energies", lambda *_: pytest.fail("energies were measured twice"))
    again = library.measure(pair, settings, CPU)
    assert found.squared and all(torch.equal(getattr(found, n), getattr(again, n)) for n in ("content_topk", "style_abs"))


def test_the_other_methods_do_ask_for_top_k(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "compute_energies", lambda *_: pytest.fail("energies were asked for"))
    pair = as_pair(random_layers(1), random_layers(2))
    for method in ("klora", "average", "direct"):
        assert not Library().measure(pair, Settings(method=method), CPU).squared
