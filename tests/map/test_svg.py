"""Theorems: the SVG shows the table that the PNG shows, and any layer's name can be in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klora_lib.map import draw_plan, draw_svg
from klora_lib.map.draw import CELL, LEGEND, MARGIN, MASK_COLOURS, ROW

SVG = "{http://www.w3.org/2000/svg}"


def read_cells(picture: str) -> dict[tuple[int, int], str]:
    """(row, column) → colour, from the paths."""
    cells: dict[tuple[int, int], str] = {}
    for path in ET.fromstring(picture).iter(f"{SVG}path"):
        for x, y, length, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path.attrib["d"]):
            assert length == back
            for column in range(int(x), int(x) + int(length)):
                assert (int(y), column) not in cells
                cells[int(y), column] = path.attrib["fill"]
    return cells


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_every_cell_has_the_colour_of_its_mask(units: int, steps: int, seed: int) -> None:
    table = torch.randint(0, 4, (units, steps), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    cells = read_cells(draw_svg(table, [str(i) for i in range(units)]))
    assert {where: tuple(bytes.fromhex(colour[1:])) for where, colour in cells.items()} == {
        (y, x): MASK_COLOURS[int(table[y, x])] for y in range(units) for x in range(steps)
    }


def test_both_pictures_have_one_size() -> None:
    table = torch.ones(7, 30, dtype=torch.uint8)
    root = ET.fromstring(draw_svg(table, list("abcdefg")))
    assert (int(root.attrib["width"]), int(root.attrib["height"])) == draw_plan(table).size
    assert draw_plan(table).size == (30 * CELL + 2 * MARGIN, 7 * ROW + 2 * MARGIN + LEGEND)


@pytest.mark.parametrize("name", ["a<b>&\"'", "\x00\x1b\n", "\ud800", "层.0", "]]>"])
def test_any_name_is_told(name: str) -> None:
    root = ET.fromstring(draw_svg(torch.ones(1, 3, dtype=torch.uint8), [name]).encode())
    (title,) = root.iter(f"{SVG}title")
    assert title.text == "".join(c if c.isprintable() else "?" for c in name)


def test_the_legend_names_what_is_there() -> None:
    def legend(*masks: int) -> list[str | None]:
        picture = draw_svg(torch.tensor([masks], dtype=torch.uint8), ["a"])
        return [text.text for text in ET.fromstring(picture).iter(f"{SVG}text")]

    assert legend(1, 2, 2) == legend(1, 1, 1) == ["content", "style"]
    assert legend(0, 1, 3) == ["none", "content", "style", "both"]
