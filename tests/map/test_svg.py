"""Theorems: the SVG shows the table that the PNG shows, and any layer's name can be in it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora_lib.map import draw_plan, draw_svg
from klora_lib.map.colours import MASK_NAMES, PALETTES, format_colour, make_pale
from klora_lib.map.frame import MapFrame, frame_map

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = PALETTES["blue and green"]


def read_cells(picture: str, frame: MapFrame) -> dict[tuple[int, int], str]:
    """(row, column) → colour, from the rectangles."""
    cells: dict[tuple[int, int], str] = {}
    (group,) = (g for g in ET.fromstring(picture).iter(f"{SVG}g") if g.get("id") == "cells")
    for rect in group:
        x, y, width, height = (int(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        row = frame.tops.index(y)
        assert y + height == frame.bottoms[row]
        for column in range((x - frame.left) // frame.cell, (x + width - frame.left) // frame.cell):
            assert (row, column) not in cells
            cells[row, column] = rect.attrib["fill"]
    return cells


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_every_cell_has_the_colour_of_its_mask(units: int, steps: int, seed: int) -> None:
    table = torch.randint(0, 4, (units, steps), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    names, choice = [f"blocks.{i}.x" for i in range(units)], [i % 2 == 0 for i in range(units)]
    cells = read_cells(draw_svg(table, names, choice), frame_map(table, names, choice))
    assert cells == {
        (y, x): format_colour(COLOURS[int(table[y, x])] if choice[y] else make_pale(COLOURS[int(table[y, x])]))
        for y in range(units)
        for x in range(steps)
    }


def test_both_pictures_have_one_size() -> None:
    table, told = torch.ones(7, 30, dtype=torch.uint8), ["a text " * 30]
    root = ET.fromstring(draw_svg(table, list("abcdefg"), told=told))
    assert (int(root.attrib["width"]), int(root.attrib["height"])) == draw_plan(table, list("abcdefg"), told=told).size


@pytest.mark.parametrize("name", ["a<b>&\"'", "\x00\x1b\n", "\ud800", "层.0", "]]>"])
def test_any_name_is_told(name: str) -> None:
    root = ET.fromstring(draw_svg(torch.ones(1, 3, dtype=torch.uint8), [name]).encode())
    (title,) = root.iter(f"{SVG}title")
    assert title.text == "".join(c if c.isprintable() else "?" for c in name)


def test_the_legend_names_what_is_there() -> None:
    def legend(*masks: int, choice: bool = True) -> list[str | None]:
        picture = draw_svg(torch.tensor([masks], dtype=torch.uint8), ["a"], [choice])
        known = {*MASK_NAMES, "paler: no choice there"}
        return [text.text for text in ET.fromstring(picture).iter(f"{SVG}text") if text.text in known]

    assert legend(1, 2, 2) == legend(1, 1, 1) == ["content", "style"]
    assert legend(0, 1, 3) == ["none", "content", "style", "both"]
    assert legend(1, 1, 1, choice=False) == ["content", "style", "paler: no choice there"]


def test_both_axes_have_labels() -> None:
    picture = draw_svg(torch.ones(2, 9, dtype=torch.uint8), ["up_blocks.0.a", "b"])
    texts = [text.text for text in ET.fromstring(picture).iter(f"{SVG}text")]
    assert {"layers, by block", "up 0", "sampling step", "1", "100 %"} <= set(texts)
