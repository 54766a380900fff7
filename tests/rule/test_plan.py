"""Theorems: the plan of a pair of LoRAs, from their files' numbers to the table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora_lib.errors import PairError
from klora_lib.rule.cache import Library
from klora_lib.rule.plan import Plan, format_row, make_plan
from klora_lib.settings import LAYERS, METHODS, Settings

from ..pairs import ATTENTION, OTHERS, SHAPES, Layers, as_pair, dense, random_layers, scaled

CPU = torch.device("cpu")
STEPS = 30
few = settings(max_examples=25)
ANYWHERE = tuple(method for method in METHODS if method != "blora")  # which is for SDXL's layers: test_blora.py


def plan_of(content: Layers, style: Layers, steps: int = STEPS, seed: int = 0, **given: object) -> Plan:
    pair, chosen = as_pair(content, style), Settings(**given)  # type: ignore[arg-type]
    return make_plan(pair, Library().measure(pair, chosen, CPU), chosen, steps, seed)


def rows(plan: Plan, steps: int = STEPS) -> dict[str, str]:
    """Layer: its letters."""
    return {unit.name: format_row(row) for unit, row in zip(plan.units, plan.table(steps))}


CONTENT, STYLE = random_layers(1), random_layers(2, rank=3)


# --- every method and layers mode ---


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("method", ANYWHERE)
def test_layers_says_what_is_decided_added_and_dropped(method: str, layers: str) -> None:
    got = rows(plan_of(CONTENT, STYLE, method=method, layers=layers))
    assert set(got) == set(SHAPES)
    allowed = {"content": "C", "style": "S", **dict.fromkeys(("direct", "np", "average", "ties"), "B")}.get(method, "CS")
    added = {"content": "C", "style": "S", "switch": "CS"}.get(method, "B")
    outside = {"all": allowed, "attention": added, "attention-only": "N"}[layers]
    assert all(set(got[name]) <= set(allowed) for name in ATTENTION)
    assert all(set(got[name]) <= set(outside) for name in OTHERS)


@pytest.mark.parametrize("layers", LAYERS)
def test_on_loras_of_attention_alone_layers_makes_no_difference(layers: str) -> None:
    content, style = random_layers(1, ATTENTION), random_layers(2, ATTENTION)
    assert rows(plan_of(content, style, layers=layers)) == rows(plan_of(content, style))


@pytest.mark.parametrize("method", ANYWHERE)
@pytest.mark.parametrize("absent", ["content", "style"])
def test_a_layer_of_one_lora_gets_that_lora(method: str, absent: str) -> None:
    """Except where the method says that it acts nowhere (content, style) or not now (switch)."""
    alone = next(iter(ATTENTION))
    loras = {"content": dict(CONTENT), "style": dict(STYLE)}
    del loras[absent][alone]
    row = rows(plan_of(**loras, method=method))[alone]
    letter = "S" if absent == "content" else "C"
    if method == absent:
        assert row == "N" * STEPS
    elif method == "switch":
        assert set(row) == {letter, "N"}
    else:
        assert row == letter * STEPS


@pytest.mark.parametrize("method", ANYWHERE)
def test_a_layer_of_one_lora_outside_attention_follows_layers(method: str) -> None:
    style = {name: module for name, module in STYLE.items() if name in ATTENTION}
    kept = rows(plan_of(CONTENT, style, method=method, layers="attention"))
    gone = rows(plan_of(CONTENT, style, method=method, layers="attention-only"))
    only = {"style": {"N"}, "switch": {"C", "N"}}.get(method, {"C"})
    assert all(set(kept[name]) == only and set(gone[name]) == {"N"} for name in OTHERS)


# --- the rule on real products ---


@few
@given(seed=st.integers(0, 2**16), alpha=st.floats(0, 5), beta=st.floats(0, 3))
def test_with_s_a_layer_switches_at_most_once_from_content_to_style(seed: int, alpha: float, beta: float) -> None:
    got = rows(plan_of(random_layers(seed), random_layers(seed + 1), alpha=alpha, beta=beta))
    assert all("SC" not in row for row in got.values())


def test_the_table_of_an_untrained_pair_is_not_trivial() -> None:
    """The random LoRAs of these tests do switch, at steps of their own."""
    got = rows(plan_of(CONTENT, STYLE))
    assert len({row for row in got.values() if "CS" in row}) > 2


@few
@given(seed=st.integers(0, 2**16))
def test_the_table_is_the_inequality_on_the_dense_products(seed: int) -> None:
    """From the definition, in fp64: K, γ, S, all by hand.  Layers within rounding of a tie are left out."""
    content, style = random_layers(seed, rank=2, alpha=1.0), random_layers(seed + 1, rank=3)
    c, s = ({name: dense(module).abs() for name, module in x.items()} for x in (content, style))
    gamma = sum(float(x.sum()) for x in c.values()) / sum(float(x.sum()) for x in s.values())
    got = rows(plan_of(content, style))
    for name, row in got.items():
        k = min(6, c[name].numel())
        ratio = float(c[name].flatten().topk(k).values.sum() / s[name].flatten().topk(k).values.sum()) / gamma
        for t in range(STEPS):
            scale = 1.5 * t / STEPS + 0.5
            if abs(ratio - scale) > 1e-5:
                assert row[t] == ("C" if ratio >= scale else "S")


@few
@given(
    seed=st.integers(0, 2**16),
    content=st.floats(1e-4, 1e4),
    style=st.floats(1e-4, 1e4),
    gamma=st.sampled_from(["auto", "mean-ratio"]),
)
def test_scaling_either_lora_leaves_the_table_of_balanced_loras_unchanged(
    seed: int, content: float, style: float, gamma: str
) -> None:
    one, two = random_layers(seed), random_layers(seed + 1)
    before = rows(plan_of(one, two, gamma=gamma))
    assert rows(plan_of(scaled(one, content), two, gamma=gamma)) == before
    assert rows(plan_of(one, scaled(two, style), gamma=gamma)) == before
    assert rows(plan_of(scaled(one, content), scaled(two, style), gamma=gamma)) == before


def test_scaling_by_the_files_alpha_is_scaling() -> None:
    quiet = random_layers(1, alpha=0.25)
    assert rows(plan_of(quiet, STYLE)) == rows(plan_of(CONTENT, STYLE))
    assert rows(plan_of(quiet, STYLE, gamma=1.0)) != rows(plan_of(CONTENT, STYLE, gamma=1.0))


def test_the_users_weights_do_not_enter() -> None:
    weights = dict(content_weight=0.1, style_weight=-3.0, content_te_weight=2.0, style_te_weight=0.0)
    assert rows(plan_of(CONTENT, STYLE, **weights)) == rows(plan_of(CONTENT, STYLE))


def test_alpha_zero_and_beta_zero_is_content_a_huge_beta_style() -> None:
    assert set(rows(plan_of(CONTENT, STYLE, alpha=0.0, beta=0.0)).values()) == {"C" * STEPS}
    assert set(rows(plan_of(CONTENT, STYLE, alpha=0.0, beta=1e9)).values()) == {"S" * STEPS}
    assert all(len(set(row)) == 1 for row in rows(plan_of(CONTENT, STYLE, alpha=0.0, beta=1.0)).values())


def test_s_star_by_default_has_beta_at_085_alpha() -> None:
    assert plan_of(CONTENT, STYLE, scale="s*").facts.beta == 1.275
    assert plan_of(CONTENT, STYLE, scale="s*", alpha=2.0).facts.beta == 1.7
    assert plan_of(CONTENT, STYLE, scale="s*", beta=0.1).facts.beta == 0.1
    assert plan_of(CONTENT, STYLE).facts.beta == 0.5
    assert rows(plan_of(CONTENT, STYLE, scale="s*")) == rows(plan_of(CONTENT, STYLE, scale="s*", alpha=1.5, beta=1.275))
    assert rows(plan_of(CONTENT, STYLE, scale="s*")) != rows(plan_of(CONTENT, STYLE))


# --- gamma ---

PATTERN = torch.tensor([[1.0, -1.0], [1.0, 1.0]])  # Σ|·| = 4


def of_strengths(strengths: dict[str, float]) -> Layers:
    """Layer: a rank-2 module whose Σ|ΔW| is 4 times its strength."""
    return {name: (PATTERN * strength, torch.eye(2), None) for name, strength in strengths.items()}


Q, K, V, OUT, KEY, VALUE = ATTENTION
FF = next(iter(OTHERS))
BY_HAND = of_strengths({Q: 1, K: 2, V: 3, OUT: 10, FF: 7}), of_strengths({Q: 1, K: 1, V: 1, OUT: 1, FF: 2, KEY: 50})


def test_gamma_auto_is_the_ratio_of_the_sums_over_shared_layers() -> None:
    """KEY, which only the style LoRA touches, does not enter."""
    assert plan_of(*BY_HAND).gamma == pytest.approx((1 + 2 + 3 + 10 + 7) / (1 + 1 + 1 + 1 + 2))


def test_gamma_mean_ratio_leaves_out_ratios_of_three_times_the_mean_and_more() -> None:
    ratios = {Q: 1.0, K: 2.0, V: 3.0, OUT: 10.0, FF: 3.5}  # mean 3.9, limit 11.7: all stay
    assert plan_of(*BY_HAND, gamma="mean-ratio").gamma == pytest.approx(sum(ratios.values()) / 5)
    loud = of_strengths({Q: 1, K: 2, V: 3, OUT: 100, FF: 7}), BY_HAND[1]  # mean 21.9, limit 65.7: OUT goes
    assert plan_of(*loud, gamma="mean-ratio").gamma == pytest.approx((1 + 2 + 3 + 3.5) / 4)


def test_a_ratio_at_the_limit_itself_is_left_out() -> None:
    """Ratios 1, 1, 1, 9: their mean is 3, and 9 is not below 9."""
    pair = of_strengths({Q: 1, K: 1, V: 1, OUT: 9}), of_strengths({Q: 1, K: 1, V: 1, OUT: 1})
    assert plan_of(*pair, gamma="mean-ratio").gamma == 1.0


@pytest.mark.parametrize("layers", ["attention", "attention-only"])
def test_gamma_is_made_of_the_layers_the_rule_decides(layers: str) -> None:
    assert plan_of(*BY_HAND, layers=layers).gamma == pytest.approx((1 + 2 + 3 + 10) / 4)
    assert plan_of(*BY_HAND, layers=layers, gamma="mean-ratio").gamma == pytest.approx((1 + 2 + 3 + 10) / 4)


def test_a_given_gamma_is_taken() -> None:
    assert plan_of(*BY_HAND, gamma=0.25).gamma == 0.25


@pytest.mark.parametrize("gamma", ["auto", "mean-ratio"])
@pytest.mark.parametrize("layers", LAYERS)
def test_gamma_is_a_number_above_zero_for_every_pair_that_is_accepted(gamma: str, layers: str) -> None:
    """Also where each LoRA is zero in just the layer in which the other one is not."""
    pair = of_strengths({Q: 1, K: 0}), of_strengths({Q: 0, K: 1})
    try:
        plan = plan_of(*pair, gamma=gamma, layers=layers)
    except PairError:
        return
    assert 0 < plan.gamma < float("inf")


def test_a_layer_in_which_one_lora_is_zero_goes_to_the_other() -> None:
    content, style = of_strengths({Q: 1, K: 0, V: 1}), of_strengths({Q: 1, K: 1, V: 0})
    got = rows(plan_of(content, style))
    assert got[K] == "S" * STEPS
    assert got[V] == "C" * STEPS


# --- the plan as a function of progress ---


@pytest.mark.parametrize("scale", ["s", "s*"])
@pytest.mark.parametrize("method", ANYWHERE)
def test_a_table_is_the_plan_read_at_t_by_T(method: str, scale: str) -> None:
    plan = plan_of(CONTENT, STYLE, method=method, scale=scale, seed=3)
    table = plan.table(STEPS)
    assert all(torch.equal(plan.at(t / STEPS), table[:, t]) for t in range(STEPS))


@pytest.mark.parametrize("method", ANYWHERE)
def test_changes_are_the_units_whose_choice_differs(method: str) -> None:
    plan = plan_of(CONTENT, STYLE, method=method, scale="s*", seed=3)
    for before, after in ((0.0, 0.0), (0.0, 0.2), (0.2, 0.9), (0.9, 0.1)):
        one, two = plan.at(before).tolist(), plan.at(after).tolist()
        assert plan.changes(before, after) == [i for i in range(len(one)) if one[i] != two[i]]
        assert plan.changes(before, after) == plan.changes(after, before)


def test_random_follows_the_images_seed() -> None:
    plans = [plan_of(CONTENT, STYLE, method="random", seed=seed) for seed in (1, 1, 2)]
    one, again, other = (rows(plan) for plan in plans)
    assert one == again != other


def test_planning_leaves_the_hosts_noise_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for method in ANYWHERE:
        plan_of(CONTENT, STYLE, method=method).table(STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_letters() -> None:
    assert format_row(torch.tensor([0, 1, 2, 3], dtype=torch.uint8)) == "NCSB"


# --- refusals ---


@pytest.mark.parametrize("zero", ["subject", "painter"])
@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_lora_is_refused_by_name(zero: str, method: str) -> None:
    """Trainers begin with up = 0; such a file changes nothing, and γ would be 0 or 1/0."""
    content, style = (scaled(x, 0.0) if name == zero else x for name, x in (("subject", CONTENT), ("painter", STYLE)))
    with pytest.raises(PairError, match=f"'{zero}' is zero in all {len(SHAPES)} layers"):
        plan_of(content, style, method=method)


@pytest.mark.parametrize("layers", ["attention", "attention-only"])
def test_no_attention_layer_in_common_is_refused_with_the_setting(layers: str) -> None:
    content, style = random_layers(1, OTHERS), random_layers(2)
    with pytest.raises(PairError, match=f"'subject' and 'painter' have no attention layer in common.*'{layers}'"):
        plan_of(content, style, layers=layers)
    assert set(rows(plan_of(content, style))) == set(SHAPES)


def test_a_lora_that_is_zero_where_it_is_to_decide_is_refused() -> None:
    """Its other layers do not help: with ``attention`` they are not asked."""
    content = {**scaled(random_layers(1, ATTENTION), 0.0), **random_layers(1, OTHERS)}
    with pytest.raises(PairError, match=f"'subject' is zero in all {len(ATTENTION)} layers"):
        plan_of(content, STYLE, layers="attention")
    assert plan_of(content, STYLE).gamma > 0
