"""Theorems: every method is its formula, whatever the scores; what a LoRA does not touch it never gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.rule.scoring import Scores
from klora_lib.rule.selectors import BOTH, CONTENT, NONE, SELECTORS, STYLE, Facts, select
from klora_lib.settings import METHODS

NAMES = ("up_blocks.0.attentions.0.proj_in", "up_blocks.0.attentions.1.proj_in", "up_blocks.0.attentions.10.proj_in", "mid")
CHOOSING = ("klora", "no-gamma", "topk", "fixed", "random", "est")  # between the LoRAs of one unit, where both are there


def progress(steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64) / steps


@st.composite
def facts(draw: st.DrawFn, star: bool | None = None) -> Facts:
    """Any scores of 1 to 8 units; absent LoRAs have sums 0; of the shared units any may be left undecided."""
    units = draw(st.integers(1, 8))
    present = draw(st.lists(st.sampled_from([NONE, CONTENT, STYLE, BOTH, BOTH]), min_size=units, max_size=units))
    decided = [mask == BOTH and draw(st.booleans()) for mask in present]

    def sums(bit: int) -> Tensor:
        return torch.tensor([draw(st.floats(0, 100)) if mask & bit else 0.0 for mask in present], dtype=torch.float64)

    return Facts(
        scores=Scores((1,) * units, sums(CONTENT), sums(STYLE), sums(CONTENT), sums(STYLE)),
        gamma=draw(st.floats(1e-3, 1e3)),
        present=torch.tensor(present, dtype=torch.uint8),
        decided=torch.tensor(decided),
        alpha=draw(st.floats(0.01, 5)),
        beta=draw(st.floats(0, 5)),
        star=draw(st.booleans()) if star is None else star,
        steps=draw(st.integers(1, 40)),
        switch_every=draw(st.integers(1, 10)),
        seed=draw(st.integers(0, 2**63 - 1)),
        stops=draw(st.sampled_from([0.0, 0.0, -3.0, 0.5, 1.0])),
        names=tuple(draw(st.sampled_from(NAMES)) for _ in present),
    )


def table(method: str, f: Facts) -> Tensor:
    return select(method, f, progress(f.steps))


def test_there_is_a_selector_for_every_method_of_the_settings() -> None:
    assert tuple(SELECTORS) == METHODS


@given(f=facts())
def test_a_table_is_a_mask_per_unit_and_step_within_what_is_present(f: Facts) -> None:
    for method in METHODS:
        got = table(method, f)
        assert got.dtype == torch.uint8, method
        assert got.shape == (len(f.present), f.steps), method
        assert ((got & ~f.present[:, None]) == 0).all(), method


@given(f=facts())
def test_a_moment_does_not_depend_on_the_others(f: Facts) -> None:
    """A column is the same alone, and in any order: nothing counts calls."""
    order, last = torch.arange(f.steps).flip(0), f.steps - 1
    for method in METHODS:
        got = table(method, f)
        assert torch.equal(select(method, f, progress(f.steps)[order]), got[:, order]), method
        assert torch.equal(select(method, f, progress(f.steps)[last:]), got[:, last:]), method


@given(f=facts())
def test_exactly_one_lora_acts_where_a_choice_is_made_and_all_that_are_there_elsewhere(f: Facts) -> None:
    for method in CHOOSING:
        got = table(method, f)
        assert torch.isin(got[f.decided], torch.tensor([CONTENT, STYLE])).all(), method
        assert (got[~f.decided] == f.present[~f.decided][:, None]).all(), method


# --- each method against its formula, in plain floats ---


def by_formula(f: Facts, content: list[list[bool]]) -> Tensor:
    rows = [
        [(CONTENT if yes else STYLE) if decided else int(mask) for yes in row]
        for row, decided, mask in zip(content, f.decided.tolist(), f.present.tolist())
    ]
    return torch.tensor(rows, dtype=torch.uint8)


def scales(f: Facts) -> list[float]:
    s = [f.alpha * (t / f.steps) + f.beta for t in range(f.steps)]
    return [x * 2.0**f.stops for x in ([x % f.alpha for x in s] if f.star else s)]


def sums(f: Facts) -> list[tuple[float, float]]:
    return list(zip(f.scores.content_topk.tolist(), f.scores.style_topk.tolist()))


@given(f=facts())
def test_klora_compares_content_with_gamma_s_style(f: Facts) -> None:
    expected = [[c >= f.gamma * scale * s for scale in scales(f)] for c, s in sums(f)]
    assert torch.equal(table("klora", f), by_formula(f, expected))


@given(f=facts())
def test_est_compares_energies_as_klora_compares_sums(f: Facts) -> None:
    """What it is given are energies: see test_energies.py."""
    assert torch.equal(table("est", f), table("klora", f))


@given(f=facts())
def test_blora_goes_by_the_layers_name_alone(f: Facts) -> None:
    act = {NAMES[0]: CONTENT, NAMES[1]: STYLE}
    expected = torch.tensor([act.get(name, NONE) for name in f.names], dtype=torch.uint8) & f.present
    assert torch.equal(table("blora", f), expected[:, None].repeat(1, f.steps))


@given(f=facts(star=False))
def test_balance_is_a_factor_of_the_threshold_and_more_of_it_is_more_style(f: Facts) -> None:
    """Two stops are what four times α and β are; no threshold is nothing to move."""
    for method in ("klora", "fixed", "topk", "no-gamma", "est"):
        less, none, more = (table(method, replace(f, stops=stops)) for stops in (-2.0, 0.0, 2.0))
        assert (more >= none).all() and (less <= none).all(), method
        if method != "topk":
            assert torch.equal(more, table(method, replace(f, stops=0.0, alpha=f.alpha * 4, beta=f.beta * 4))), method


@given(f=facts())
def test_balance_changes_nothing_where_there_is_no_threshold(f: Facts) -> None:
    for method in ("direct", "random", "switch", "content", "style", "blora"):
        assert torch.equal(table(method, f), table(method, replace(f, stops=3.0))), method


@given(f=facts())
def test_no_gamma_is_klora_with_gamma_one(f: Facts) -> None:
    assert torch.equal(table("no-gamma", f), table("klora", replace(f, gamma=1.0)))


@given(f=facts())
def test_topk_compares_the_sums_alone(f: Facts) -> None:
    assert torch.equal(table("topk", f), by_formula(f, [[c >= 2.0**f.stops * s] * f.steps for c, s in sums(f)]))


@given(f=facts())
def test_fixed_asks_the_clock_alone(f: Facts) -> None:
    assert torch.equal(table("fixed", f), by_formula(f, [[f.gamma * s < 1 for s in scales(f)]] * len(f.present)))


@given(f=facts())
def test_direct_content_and_style_are_masks(f: Facts) -> None:
    steps = (1, f.steps)
    for method in ("np", "average", "ties"):  # which act everywhere, with what a combiner makes of the pair
        assert torch.equal(table(method, f), table("direct", f))
    assert torch.equal(table("direct", f), f.present[:, None].repeat(steps))
    assert torch.equal(table("content", f), (f.present & CONTENT)[:, None].repeat(steps))
    assert torch.equal(table("style", f), (f.present & STYLE)[:, None].repeat(steps))


@given(f=facts())
def test_switch_alternates_whole_loras_content_first(f: Facts) -> None:
    got = table("switch", f)
    for t in range(f.steps):
        turn = CONTENT if t // f.switch_every % 2 == 0 else STYLE
        assert torch.equal(got[:, t], f.present & turn)


# --- S ---


@pytest.mark.parametrize("method", ["klora", "no-gamma", "topk", "fixed"])
@given(f=facts(star=False))
def test_with_s_a_unit_switches_at_most_once_from_content_to_style(method: str, f: Facts) -> None:
    got = table(method, f)[f.decided]
    assert (got.diff() >= 0).all()  # CONTENT is 1, STYLE is 2


@given(f=facts(star=False))
def test_without_alpha_nothing_switches(f: Facts) -> None:
    got = table("klora", replace(f, alpha=0.0))
    assert (got == got[:, :1]).all()


@given(f=facts(star=False))
def test_scale_zero_is_all_content(f: Facts) -> None:
    assert (table("klora", replace(f, alpha=0.0, beta=0.0))[f.decided] == CONTENT).all()


@given(f=facts(star=False))
def test_a_huge_scale_is_style_wherever_it_has_any_strength(f: Facts) -> None:
    strong = f.decided & (f.scores.style_topk > 1e-3)
    assert (table("klora", replace(f, beta=1e12))[strong] == STYLE).all()


@given(f=facts(star=False), factor=st.sampled_from([2.0**-40, 0.25, 8.0, 2.0**40]))
def test_a_stronger_lora_with_gamma_as_much_larger_changes_nothing(f: Facts, factor: float) -> None:
    """The factors are powers of two, so that not even rounding differs."""
    assume(all(s == 0 or s > 1e-200 for pair in sums(f) for s in pair))
    louder = replace(f.scores, content_topk=f.scores.content_topk * factor)
    assert torch.equal(table("klora", replace(f, scores=louder, gamma=f.gamma * factor)), table("klora", f))


def balanced(steps: int, alpha: float, beta: float, star: bool) -> Facts:
    """One unit, whose content is γ times as strong as its style."""
    scores = Scores((1,), *(torch.tensor([x], dtype=torch.float64) for x in (3.0, 2.0, 3.0, 2.0)))
    both = torch.tensor([BOTH], dtype=torch.uint8)
    return Facts(scores, 1.5, both, torch.tensor([True]), alpha, beta, star, steps, 5, 0)


def test_s_starts_with_content_and_ends_with_style() -> None:
    """A balanced unit turns where S passes 1: after a third of the steps, with the paper's α and β."""
    assert table("klora", balanced(30, 1.5, 0.5, False)).tolist() == [[CONTENT] * 11 + [STYLE] * 19]


def test_s_star_opens_with_style_then_content_then_style() -> None:
    """S* falls to 0 at 0.15 of the steps, and passes 1 again at 0.8167."""
    got = table("klora", balanced(100, 1.5, 1.275, True))[0].tolist()
    assert got[:15] == [STYLE] * 15
    assert got[16:82] == [CONTENT] * 66
    assert got[82:] == [STYLE] * 18


# --- random ---


def many(seed: int, steps: int = 30, units: int = 300) -> Facts:
    ones = torch.ones(units, dtype=torch.float64)
    both = torch.full((units,), BOTH, dtype=torch.uint8)
    return Facts(Scores((1,) * units, ones, ones, ones, ones), 1.0, both, both == BOTH, 1.5, 0.5, False, steps, 5, seed)


def test_random_is_a_function_of_seed_and_step() -> None:
    f = many(seed=7)
    got = table("random", f)
    assert torch.equal(got, table("random", f))
    within = select("random", f, progress(30) + 0.9 / 30)
    assert torch.equal(got, within)
    assert not torch.equal(got, table("random", many(seed=8)))
    assert all(not torch.equal(got[:, t], got[:, t + 1]) for t in range(29))


def test_random_takes_content_one_time_in_three() -> None:
    share = (table("random", many(seed=1)) == CONTENT).double().mean()
    assert float(share) == pytest.approx(1 / 3, abs=0.015)  # three standard deviations of 9000 draws


@given(seed=st.integers(0, 2**63 - 1))
def test_random_leaves_the_hosts_noise_alone(seed: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    table("random", many(seed, steps=3, units=4))
    assert torch.equal(torch.get_rng_state(), before)


@given(total=st.integers(1, 1000))
def test_the_step_of_t_by_T_is_t(total: int) -> None:
    f = replace(many(0, units=1), steps=total)
    assert torch.equal(f.step(progress(total)), torch.arange(total))
