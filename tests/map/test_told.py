"""Theorems of the text below a map, and of the map as the page gets it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from klora_lib.map.colours import PALETTES, find_palette
from klora_lib.map.describe import describe_layers, describe_map
from klora_lib.map.layout import arrange
from klora_lib.map.told import tell_plan, tell_settings
from klora_lib.rule.plan import format_row, make_plan
from klora_lib.settings import BY_NAME, METHODS, Settings

from ..engine.stack import prepare

GREEN = PALETTES["blue and green"]


@pytest.mark.parametrize("method", METHODS)
def test_what_the_method_uses_is_told(method: str) -> None:
    told = tell_settings(Settings(method=method, content="a", style="b"), 1.25)
    assert told.startswith(f"K-LoRA, content: a, style: b, method: {method}")
    for name in ("alpha", "balance", "switch_every", "mu", "density"):
        assert (f", {name}: " in told) == (method in BY_NAME[name].methods)


def test_what_is_not_as_usual_is_told() -> None:
    usual = tell_settings(Settings(), 1.0)
    assert not any(word in usual for word in ("weight", "layers", "progress", "content:", "style:"))
    told = tell_settings(Settings(style_weight=0.7, layers="attention", gamma=2.0, alpha=1.0, scale="s*"), 2.0, ("x", "y"))
    for part in ("content: x", "style_weight: 0.7", "layers: attention", "gamma: 2", "beta: 0.85", "scale: s*"):
        assert f", {part}" in told
    assert "gamma: auto (1)" in usual


@pytest.mark.parametrize("method", ["klora", "switch", "direct", "random", "est"])
def test_the_page_gets_the_plan(method: str) -> None:
    stack = prepare()
    plan = make_plan(stack.pair, stack.plan.facts.scores, Settings(method=method), 9)
    table = plan.table(9)
    layout = arrange([unit.name for unit in plan.units])
    layers, found = describe_layers(plan, layout), describe_map(plan, table, GREEN, layout)
    by_name = {unit.name: i for i, unit in enumerate(plan.units)}
    assert sorted(layers["names"]) == sorted(by_name)
    scores = plan.facts.scores
    for row, name in enumerate(layers["names"]):
        i = by_name[name]
        unit = plan.units[i]
        assert found["patterns"][found["rows"][row]] == format_row(table[i])
        assert layers["content_ranks"][row] == (unit.content.rank if unit.content else 0)
        assert bool(found["choice"][row]) == bool(plan.facts.decided[i])
        if found["ratios"][row] is not None:
            wanted = float(scores.content_topk[i]) / (plan.gamma * float(scores.style_topk[i]))
            assert found["ratios"][row] == pytest.approx(wanted, rel=1e-3)
        else:
            assert not plan.facts.decided[i]
    assert len(set(found["patterns"])) == len(found["patterns"]) <= len(plan.units)
    assert found["steps"] == 9 and len(found["share"]) == 9 and found["gamma"] == pytest.approx(plan.gamma, rel=1e-3)
    json.dumps([layers, found], allow_nan=False)


def test_a_style_that_is_zero_in_a_layer_is_no_number() -> None:
    plan = prepare().plan
    scores = plan.facts.scores
    scores.style_topk[plan.facts.decided.nonzero()[0]] = 0.0
    found = describe_map(plan, plan.table(3), GREEN, arrange([unit.name for unit in plan.units]))
    json.dumps(found, allow_nan=False)
    assert any(choice and ratio is None for choice, ratio in zip(found["choice"], found["ratios"]))


def test_the_picture_tells_what_the_page_tells() -> None:
    plan = prepare().plan
    told = tell_plan(plan, "x", "y", "Hires pass. ")
    assert told.told[0].startswith("Hires pass. K-LoRA, content: x") and told.choice == plan.facts.decided.tolist()
    assert math.isfinite(plan.gamma) and torch.equal(plan.facts.decided, torch.tensor(told.choice))


def test_palettes_are_found_by_name() -> None:
    assert find_palette("blue and orange") == PALETTES["blue and orange"]
    assert find_palette("") == find_palette(7) == GREEN
