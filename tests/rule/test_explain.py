"""Theorems: what is told of a pair is what dense matrices and the table say, whatever the types of its modules."""

from __future__ import annotations

import math

import pytest
import torch

from klora_lib.lora.deltas import Dora
from klora_lib.lora.keys import make_natural_order
from klora_lib.rule.cache import Library
from klora_lib.rule.explain import Explained, compare, describe_turns, explain, find_block, format_report
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import Settings

from ..engine.cases import DENSE, KINDS, LOW_RANK, lora, rand
from ..pairs import OTHERS, as_pair, dense, random_layers, scaled

CPU = torch.device("cpu")
STEPS = 20
PLAIN = [*LOW_RANK, *(kind for kind in DENSE if kind != "glora")]  # whose ΔW is the same for every weight


def explained(content: dict, style: dict, **given: object) -> tuple[Plan, Explained]:
    pair, settings = as_pair(content, style), Settings(**given)  # type: ignore[arg-type]
    plan = make_plan(pair, Library().measure(pair, settings, CPU), settings, STEPS)
    return plan, explain(plan, STEPS)


def inside(c: torch.Tensor, s: torch.Tensor) -> float:
    _, sizes, right = torch.linalg.svd(s, full_matrices=False)
    return float((c @ right[sizes > 1e-9 * sizes.max()].T).square().sum())


@pytest.mark.parametrize("shape", [(8, 6), (6, 4, 3, 3)])
@pytest.mark.parametrize("style", PLAIN)
@pytest.mark.parametrize("content", PLAIN)
def test_how_alike_two_modules_are_is_what_their_matrices_say(content: str, style: str, shape: tuple[int, ...]) -> None:
    one, two = KINDS[content](shape, 40), KINDS[style](shape, 60)
    nothing = torch.zeros(shape[0], math.prod(shape[1:]), dtype=torch.float64)
    c, s = one[1](nothing), two[1](nothing)
    inner, within, chance = compare(one[0], two[0])
    assert inner == pytest.approx(float((c * s).sum()), rel=1e-5, abs=1e-5)
    if style in DENSE:
        assert math.isnan(within) and math.isnan(chance)
    else:
        rank = int(torch.linalg.matrix_rank(s))
        assert within == pytest.approx(inside(c, s), rel=1e-4)
        assert chance == pytest.approx(float(c.square().sum()) * rank / c.shape[1], rel=1e-5)


def test_of_a_dora_its_low_rank_product_is_told() -> None:
    (one, _), (two, _) = lora((8, 6), 1), lora((8, 6), 2)
    turned = Dora(two, rand(8, 1, seed=3))
    assert compare(one, turned) == compare(one, two) and compare(turned, one) == compare(two, one)


def test_every_number_of_a_part_by_hand() -> None:
    content, style = random_layers(1, rank=2, alpha=1.0), random_layers(2, rank=3)
    only_c, only_s = "down_blocks.1.resnets.0.conv1", "down_blocks.1.attentions.0.proj_in"
    del style[only_c], content[only_s]
    plan, found = explained(content, style)
    c, s = ({name: dense(module) for name, module in layers.items()} for layers in (content, style))
    table = dict(zip((unit.name for unit in plan.units), plan.table(STEPS).tolist()))
    shared, total = c.keys() & s.keys(), found.total
    energy_c, energy_s = (sum(float(x.square().sum()) for x in layers.values()) for layers in (c, s))
    cells = [mask for row in table.values() for mask in row]
    assert (total.layers, total.content_alone, total.style_alone) == (len(table), 1, 1)
    assert total.never_switch == sum(len(set(row)) == 1 for row in table.values())
    assert total.content_energy == pytest.approx(energy_c) and total.style_energy == pytest.approx(energy_s)
    shares = [total.none_steps, total.content_steps, total.style_steps, total.both_steps]
    assert shares == pytest.approx([cells.count(mask) / len(cells) for mask in (0, 1, 2, 3)])
    for acting, layers, bit, whole in ((total.content_acting, c, 1, energy_c), (total.style_acting, s, 2, energy_s)):
        each = [float(x.square().sum()) * sum(m & bit > 0 for m in table[name]) / STEPS for name, x in layers.items()]
        assert acting == pytest.approx(sum(each) / whole)
    shared_c, shared_s = (sum(float(layers[n].square().sum()) for n in shared) for layers in (c, s))
    assert total.cosine == pytest.approx(sum(float((c[n] * s[n]).sum()) for n in shared) / math.sqrt(shared_c * shared_s))
    assert total.content_in_style == pytest.approx(sum(inside(c[n], s[n]) for n in shared) / shared_c, rel=1e-5)
    by_chance = sum(float(c[n].square().sum()) * 3 / c[n].shape[1] for n in shared)
    assert total.chance == pytest.approx(by_chance / shared_c, rel=1e-5)


def test_blocks_make_up_the_whole_and_stand_in_the_models_order() -> None:
    names = ("up_blocks.10.a", "up_blocks.2.a", "mid_block.attentions.0.a", "conv_in", "up_blocks.2.b")
    shapes = dict.fromkeys(names, (8, 6))
    _, found = explained(random_layers(1, shapes), random_layers(2, shapes))
    assert [part.name for part in found.blocks] == ["conv_in", "mid_block", "up_blocks.2", "up_blocks.10"]
    assert [part.layers for part in found.blocks] == [1, 1, 2, 1]
    assert sum(part.content_energy for part in found.blocks) == pytest.approx(found.total.content_energy)
    assert find_block("single_transformer_blocks.7.attn.to_q") == "single_transformer_blocks.7"
    assert sorted(("b.10", "b.9", "a"), key=make_natural_order) == ["a", "b.9", "b.10"]


def test_one_lora_against_itself_is_all_inside() -> None:
    _, found = explained(random_layers(1), scaled(random_layers(1), -2.0))
    assert found.total.cosine == pytest.approx(-1) and found.total.content_in_style == pytest.approx(1)
    assert found.total.style_energy == pytest.approx(4 * found.total.content_energy)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "direct"}, "both together act in most layers at every step"),
        ({"method": "content"}, "content acts in most layers at every step"),
        ({"alpha": 0.0, "beta": 1e9}, "style acts in most layers at every step"),
        ({"method": "fixed", "gamma": 1.0}, "content begins in most layers, and style takes over at step 8 of 20"),
        (
            {"method": "switch", "switch_every": 1},
            "content begins, and the two take turns in most layers, 19 times in 20 steps",
        ),
        (
            {"method": "switch", "switch_every": 8},
            "content begins in most layers, and style takes over at step 9, content takes over at step 17 of 20",
        ),
    ],
)
def test_who_acts_is_said_in_a_sentence(given: dict[str, object], said: str) -> None:
    _, found = explained(random_layers(1), random_layers(2), **given)
    assert found.sentence.startswith(f"{said}; ") and found.sentence.endswith(" % would be by chance")
    assert format_report(found).startswith(f"{found.sentence[0].upper()}{found.sentence[1:]}.\n")


def test_of_two_without_a_common_layer_each_acts() -> None:
    layers = random_layers(1)
    names = list(layers)
    _, found = explained({names[0]: layers[names[0]]}, {names[1]: layers[names[1]]})
    assert found.sentence == "they have no layer in common, so each acts on its own layers"


def test_layers_without_any_lora_are_told_apart() -> None:
    plan, found = explained(random_layers(1), random_layers(2), layers="attention-only")
    assert found.total.none_steps == pytest.approx(len(OTHERS) / len(plan.units))
    assert describe_turns(torch.zeros(3, 4, dtype=torch.uint8)) == "neither acts in most layers at every step"


def test_the_text_has_a_line_a_block_and_the_json_no_nan() -> None:
    _, found = explained(random_layers(1), random_layers(2))
    lines = format_report(found).splitlines()
    assert [line.split()[0] for line in lines[3:]] == [*(part.name for part in found.blocks), "all"]
    told = found.as_json()
    assert told["total"]["name"] == "all" and len(told["blocks"]) == len(found.blocks)
    assert all(value is None or value == value for value in told["total"].values())
