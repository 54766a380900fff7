"""Theorem: the map's pixel at (layer, step) has the colour of the plan's choice there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from klora_lib.map.colours import PALETTES, make_pale
from klora_lib.map.draw import draw_plan
from klora_lib.map.frame import MapFrame, frame_map, share_style
from klora_lib.map.told import tell_plan
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.selectors import Facts
from klora_lib.settings import Settings

from ..engine.stack import prepare

COLOURS = PALETTES["blue and green"]


def pixel(picture: Any, frame: MapFrame, row: int, step: int) -> tuple[int, ...]:
    return picture.getpixel((frame.left + step * frame.cell + frame.cell // 2, frame.tops[row]))


@pytest.mark.parametrize("steps", [1, 2, 12, 30, 700])
@pytest.mark.parametrize("method", ["klora", "direct", "content"])
def test_every_choice_has_its_colour(method: str, steps: int) -> None:
    pair, scores = prepare().pair, prepare().plan.facts.scores
    plan = make_plan(pair, scores, Settings(method=method), steps)
    table, told = plan.table(steps), tell_plan(plan)
    picture, frame = draw_plan(table, *told), frame_map(table, *told)
    assert picture.mode == "RGB" and picture.size == (frame.width, frame.height)
    by_name = {unit.name: i for i, unit in enumerate(plan.units)}
    for row, name in enumerate(frame.names):
        unit = by_name[name]
        for step in range(steps):
            wanted = COLOURS[table[unit, step]]
            wanted = wanted if plan.facts.decided[unit] else make_pale(wanted)
            assert pixel(picture, frame, row, step) == wanted, (name, step)


def test_the_picture_has_all_layers_and_a_legend() -> None:
    plan = prepare().plan
    table = plan.table(40)
    picture, frame = draw_plan(table), frame_map(table)
    assert len(frame.tops) == len(frame.bottoms) == len(plan.units)
    assert all(bottom - top >= 2 for top, bottom in zip(frame.tops, frame.bottoms))
    below = picture.crop((0, frame.legend, picture.width, picture.height))
    shown = {colour for _, colour in below.getcolors(1 << 16)}
    assert {COLOURS[m] for m in set(table.flatten().tolist()) | {1, 2}} <= shown


def test_one_layer() -> None:
    facts = prepare().plan.facts
    one = Facts(**{**vars(facts), "present": torch.tensor([1], dtype=torch.uint8), "decided": torch.tensor([False])})
    plan = Plan(prepare().plan.units[:1], one, "direct", "all")
    table = plan.table(3)
    assert pixel(draw_plan(table), frame_map(table), 0, 1) == COLOURS[1]


def test_colours_are_the_papers() -> None:
    """Content blue, style green."""
    (_, content, style, _) = COLOURS
    assert content[2] == max(content) and style[1] == max(style)


@pytest.mark.parametrize("name", PALETTES)
def test_colours_can_be_told_apart(name: str) -> None:
    """Of each other and of their paler ones, also by who sees no red or no green: in lightness or in blue."""

    def seen(colour: tuple[int, int, int]) -> tuple[float, float]:
        red, green, blue = colour
        return 0.3 * red + 0.59 * green + 0.11 * blue, blue

    both = [*PALETTES[name], *(make_pale(colour) for colour in PALETTES[name])]
    assert len(set(both)) == 8
    if name == "blue and orange":
        content, style = (seen(colour) for colour in PALETTES[name][1:3])
        assert abs(content[0] - style[0]) > 50 and abs(content[1] - style[1]) > 50


def test_the_share_of_style() -> None:
    table = torch.tensor([[1, 2, 3, 0], [1, 2, 2, 0], [1, 1, 0, 0]], dtype=torch.uint8)
    assert share_style(table) == [0, 2 / 3, 3 / 4, 0]


@pytest.mark.parametrize(("steps", "labels"), [(1, [1]), (3, [1, 2, 3]), (30, [1, 4, 6])])
def test_the_axis_is_labelled_by_steps(steps: int, labels: list[int]) -> None:
    frame = frame_map(torch.ones(4, steps, dtype=torch.uint8))
    assert frame.ticks[:3] == labels and frame.ticks[-1] <= steps
    places = [step * frame.cell for step in frame.ticks]
    assert all(b - a >= 28 for a, b in zip(places, places[1:]))


def test_any_name_can_be_in_the_text() -> None:
    """Pillow's own font, the only one that there surely is, knows Latin letters alone."""
    table = torch.ones(2, 3, dtype=torch.uint8)
    for told in ("content: 水彩", "\x00\n", "x" * 5000, ""):
        assert draw_plan(table, ["层.0", "b"], told=[told]).width == frame_map(table, ["层.0", "b"]).width
