"""The benches' own parts: tables, charts, turns, and the rivals, which must choose what the paper says, and so our plan."""

from __future__ import annotations

import math
from contextlib import contextmanager
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair
from klora_lib.rule.plan import make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.rule.selectors import CONTENT
from klora_lib.settings import Settings

from .bench import rivals, scoring
from .bench.chart import Panel, draw_charts, find_ticks
from .bench.pairs import list_flux_shapes, make_factors, make_random_pair
from .bench.tables import make_table, put_section
from .bench.turns import find_ratios, format_spread, take_turns

STEPS = 12
SHAPES = {f"down_blocks.1.attentions.0.transformer_blocks.{i}.attn1.to_q": (24, 16 + 8 * (i % 2)) for i in range(8)}
CPU = torch.device("cpu")


class Model(nn.Module):
    """The layers of ``SHAPES`` under their names."""

    def __init__(self) -> None:
        super().__init__()
        for name, (rows, columns) in SHAPES.items():
            owner: nn.Module = self
            for part in name.split("."):
                if part not in owner._modules:
                    owner.add_module(part, nn.Linear(columns, rows, bias=False) if part == "to_q" else nn.Module())
                owner = owner._modules[part]  # type: ignore[assignment]


@pytest.fixture
def pair() -> tuple[dict, dict]:
    return make_factors(SHAPES, 3, 0), make_factors(SHAPES, 4, 1)


@pytest.fixture
def layers(pair) -> list[rivals.Layer]:
    return rivals.find_layers(Model().requires_grad_(False), pair)


def our_pair() -> Pair:
    return make_random_pair(SHAPES, (3, 4), "unet")


def our_table() -> list[list[bool]]:
    ours = our_pair()
    plan = make_plan(ours, Library().score(ours, "auto", CPU), Settings(), STEPS)
    by_name = {unit.name: row for unit, row in zip(plan.units, plan.table(STEPS).tolist())}
    return [[mask == CONTENT for mask in by_name[name]] for name in SHAPES]


def test_choice_by_force_is_our_plan(layers):
    table = rivals.choose_by_force(rivals.sum_by_force(layers), rivals.find_gamma(layers), STEPS)
    assert table == our_table()
    assert len({sum(row) for row in table}) > 2  # layers that switch at different steps


def test_topk_at_every_forward_adds_what_our_plan_chooses(layers):
    gamma, now = rivals.find_gamma(layers), [0]
    add = rivals.choose_at_every_forward(gamma, lambda: now[0] / STEPS)
    table = our_table()
    with rivals.hooked(layers, add):
        for i, layer in enumerate(layers):
            x = torch.randn(5, layer.module.in_features, generator=torch.Generator().manual_seed(i))
            for now[0] in range(STEPS):
                chosen = layer.update(table[i][now[0]])
                assert torch.allclose(layer.module(x), x @ (layer.module.weight + chosen).T, atol=1e-5)


def test_hooks_are_taken_off(layers):
    with rivals.hooked(layers, rivals.add_online):
        assert all(layer.module._forward_hooks for layer in layers)
    assert not any(layer.module._forward_hooks for layer in layers)


def test_online_sum_is_the_merged_weight(layers):
    layer = layers[0]
    x = torch.randn(5, layer.module.in_features)
    for content in (True, False):
        assert torch.allclose(rivals.add_online(layer, x, content), x @ layer.update(content).T, atol=1e-5)


def test_weights_are_written_and_given_back(layers):
    own = [layer.module.weight.clone() for layer in layers]
    weights = rivals.Weights(layers)
    weights.add_both()
    for layer, before in zip(layers, own):
        assert torch.allclose(layer.module.weight, before + layer.update(True) + layer.update(False), atol=1e-5)
    weights.write([True] * len(layers), torch.float64)
    for layer, before in zip(layers, own):
        assert torch.allclose(layer.module.weight, before + layer.update(True), atol=1e-5)
    weights.restore()
    assert all(torch.equal(layer.module.weight, before) for layer, before in zip(layers, own))


def test_only_layers_that_switch_are_written(layers):
    weights = rivals.Weights(layers)
    weights.write([True] * len(layers), torch.float32)
    versions = [layer.module.weight._version for layer in layers]
    after = [i != 2 for i in range(len(layers))]
    weights.write(after, torch.float32, [True] * len(layers))
    changed = [i for i, layer in enumerate(layers) if layer.module.weight._version != versions[i]]
    assert changed == [2]


def test_sums_by_force_find_a_wrong_score():
    ours = our_pair()
    scores = score_units(ours.units, "auto", CPU)
    assert scoring.find_difference(ours.units, scores) < scoring.ALLOWED
    scores.style_topk[0] *= 1.001
    assert scoring.find_difference(ours.units, scores) == pytest.approx(0.001, rel=0.01)


def test_flux_has_its_blocks():
    shapes = list_flux_shapes()
    assert len(shapes) == 19 * 10 + 38 * 3
    assert shapes["single_blocks.37.linear1"] == (21504, 3072) and shapes["double_blocks.0.img_attn.qkv"] == (9216, 3072)


def test_table_has_a_rule_and_refuses_ragged_rows():
    assert make_table(("a", "b"), [(1, "x")]) == ["| a | b |", "|---|---|", "| 1 | x |"]
    with pytest.raises(ValueError, match="3 cells, the table 2 columns"):
        make_table(("a", "b"), [(1, 2, 3)])


def test_section_is_replaced_and_the_rest_is_kept():
    text = "before\n<!-- one -->\nold \\1\n<!-- /one -->\nafter <!-- two -->x<!-- /two -->"
    assert put_section(text, "one", ["new \\g<0>"]) == text.replace("old \\1", "new \\g<0>")
    with pytest.raises(ValueError, match="has 0 sections <!-- three -->"):
        put_section(text, "three", [])


def test_turns_alternate_and_what_is_around_one_is_not_in_another():
    seen: list[str] = []

    @contextmanager
    def around():
        seen.append("open")
        yield
        seen.append("close")

    times = take_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2, around={"b": around})
    assert seen == ["a", "open", "b", "close", "open", "b", "close", "a"]
    assert [len(times[name]) for name in "ab"] == [2, 2]
    assert len(take_turns({"a": lambda: None}, 5, limit=0)["a"]) == 1


def test_ratios_are_of_rounds_side_by_side():
    assert find_ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]
    assert format_spread([2.0, 3.0, 2.5]) == "2.50 (2.00–3.00)" and format_spread([2.0]) == "2.00"


@pytest.mark.parametrize("most", [0.003, 0.9, 1, 7, 60, 128, 560, 1234])
def test_ticks_are_few_and_reach_the_most(most):
    ticks = find_ticks(most)
    assert ticks[0] == 0 and most <= ticks[-1] * (1 + 1e-9) and 3 <= len(ticks) <= 7
    assert math.isclose(ticks[-1], ticks[1] * (len(ticks) - 1))


def test_chart_is_well_formed_and_has_every_point():
    panels = [Panel("a < b", "x", "y", {"one": [(1, 2), (3, 4)], "two": [(1, 1)]})] * 3
    root = ElementTree.fromstring(draw_charts(panels))
    assert len(root.findall(".//{*}circle")) == 9
    assert "a < b" in {text.text for text in root.findall(".//{*}text")}
