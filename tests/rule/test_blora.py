"""B-LoRA's split: content in one block of SDXL, style in the next, nothing elsewhere, whatever else the files have."""

from __future__ import annotations

import pytest
import torch

from klora_lib.errors import PairError
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Unit
from klora_lib.rule.plan import Plan, format_row, make_plan
from klora_lib.settings import Settings

from ..engine.cases import KINDS
from ..pairs import SHAPES, Layers, as_pair, random_layers

CPU = torch.device("cpu")
CONTENT, STYLE = (f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn1.to_q" for i in (0, 1))
PROJ = "up_blocks.0.attentions.0.proj_in"
OTHER = "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q"
LAYERS = dict.fromkeys((CONTENT, PROJ, STYLE, OTHER), (12, 12))


def plan_of(content: Layers, style: Layers, **given: object) -> Plan:
    pair, settings = as_pair(content, style), Settings(method="blora", **given)  # type: ignore[arg-type]
    return make_plan(pair, Library().measure(pair, settings, CPU), settings, 4)


def rows(plan: Plan) -> dict[str, str]:
    return {unit.name: format_row(row) for unit, row in zip(plan.units, plan.table(4))}


def of(*names: str) -> Layers:
    return random_layers(1, dict.fromkeys(names, (12, 12)))


def test_each_has_its_block_and_every_other_layer_none() -> None:
    got = rows(plan_of(random_layers(1, LAYERS), random_layers(2, LAYERS)))
    assert got == {CONTENT: "CCCC", PROJ: "CCCC", STYLE: "SSSS", OTHER: "NNNN"}


def test_files_trained_for_the_split_share_no_layer() -> None:
    assert rows(plan_of(of(CONTENT), of(STYLE))) == {CONTENT: "CCCC", STYLE: "SSSS"}


def test_a_file_in_the_others_block_alone_is_refused() -> None:
    with pytest.raises(PairError, match="content: 'subject' has no layer in up_blocks.0.attentions.0, in which blora puts"):
        plan_of(of(STYLE, OTHER), of(STYLE, OTHER))
    with pytest.raises(PairError, match="style: 'painter' has no layer in up_blocks.0.attentions.1, in which blora puts"):
        plan_of(of(CONTENT, OTHER), of(CONTENT, OTHER))


def test_other_architectures_are_refused() -> None:
    with pytest.raises(PairError, match="it is for SDXL"):
        plan_of(random_layers(1, SHAPES), random_layers(2, SHAPES))


def test_attention_alone_leaves_out_the_rest_of_the_block() -> None:
    plan = plan_of(random_layers(1, LAYERS), random_layers(2, LAYERS), layers="attention-only")
    assert rows(plan) == {CONTENT: "CCCC", PROJ: "NNNN", STYLE: "SSSS", OTHER: "NNNN"}


def test_norms_and_biases_go_with_their_block() -> None:
    plan = plan_of(random_layers(1, LAYERS), random_layers(2, LAYERS))
    delta = KINDS["full"]((12, 12), 1)[0]
    names = ("up_blocks.0.attentions.0.norm", "up_blocks.0.attentions.1.norm", "up_blocks.1.attentions.0.norm")
    assert [plan.added_mask(Unit(name, delta, delta)) for name in names] == [1, 2, 0]
