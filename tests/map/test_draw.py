"""Theorem: the map's pixel at (layer, step) has the colour of the plan's choice there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from klora_lib.map.draw import CELL, LEGEND, MARGIN, MASK_COLOURS, ROW, draw_plan
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.selectors import Facts
from klora_lib.settings import Settings

from ..engine.stack import prepare


def pixel(picture: Any, row: int, step: int, width: int) -> tuple[int, ...]:
    return picture.getpixel((MARGIN + int((step + 0.5) * width), MARGIN + row * ROW))


@pytest.mark.parametrize("steps", [1, 2, 12, 30])
@pytest.mark.parametrize("method", ["klora", "direct", "content"])
def test_every_choice_has_its_colour(method: str, steps: int) -> None:
    pair = prepare().pair
    scores = prepare().plan.facts.scores
    plan = make_plan(pair, scores, Settings(method=method), steps)
    table = plan.table(steps)
    picture = draw_plan(table)
    width = max(CELL, 300 // steps)
    assert picture.mode == "RGB"
    for row in range(len(table)):
        for step in range(steps):
            assert pixel(picture, row, step, width) == MASK_COLOURS[table[row, step]], (row, step)


def test_the_picture_holds_all_layers_and_a_legend() -> None:
    plan = prepare().plan
    picture = draw_plan(plan.table(40))
    assert picture.size == (40 * CELL + 2 * MARGIN, len(plan.units) * ROW + 2 * MARGIN + LEGEND)
    below = picture.crop((0, picture.height - LEGEND, *picture.size))
    shown = {colour for _, colour in below.getcolors(1 << 16)}
    assert {MASK_COLOURS[m] for m in set(plan.table(40).flatten().tolist()) | {1, 2}} <= shown


def test_one_layer() -> None:
    facts = prepare().plan.facts
    one = Facts(**{**vars(facts), "present": torch.tensor([1], dtype=torch.uint8), "decided": torch.tensor([False])})
    plan = Plan(prepare().plan.units[:1], one, "direct", "all")
    assert pixel(draw_plan(plan.table(3)), 0, 1, 100) == MASK_COLOURS[1]


def test_colours_are_the_papers() -> None:
    """Content blue, style green."""
    (_, content, style, _) = MASK_COLOURS
    assert content[2] == max(content) and style[1] == max(style)
