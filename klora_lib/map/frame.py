"""Where everything is in the picture of a map, in pixels: the same for PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rule.selectors import BOTH, CONTENT, STYLE
from .colours import MASK_NAMES, PALETTES, Palette, make_pale
from .layout import Group, Layout, arrange

MARGIN, LINE, GAP, CURVE, LETTER = 8, 14, 3, 60, 6  # pixels; LETTER is about the width of one
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
CLOSEST = 30  # pixels between two labels of the axis


@dataclass(frozen=True)
class MapFrame:
    """A map whose rows are in the model's order, and where they are."""

    table: Tensor  # masks, uint8 [rows, steps]
    names: tuple[str, ...]  # of the rows' layers
    choice: tuple[bool, ...]  # of each row, whether the method chooses there
    groups: tuple[Group, ...]
    told: tuple[str, ...]  # lines of text below
    share: tuple[float, ...]  # of the style, at each step
    left: int  # x of the first step
    cell: int  # width of a step
    tops: tuple[int, ...]  # y of each row, and below the last one of each group's: see bottoms
    bottoms: tuple[int, ...]
    colours: Palette

    @property
    def steps(self) -> int:
        return int(self.table.shape[1])

    @property
    def right(self) -> int:
        return self.left + self.cell * self.steps

    @property
    def bottom(self) -> int:
        """y below the last row."""
        return self.bottoms[-1] if self.bottoms else MARGIN + LINE

    @property
    def curve(self) -> tuple[int, int]:
        """y of 100 % and of 0 %."""
        top = self.bottom + 2 * LINE
        return top, top + CURVE

    @property
    def axis(self) -> int:
        """y of the labels of the steps."""
        return self.curve[1] + 4

    @property
    def legend(self) -> int:
        return self.axis + 2 * LINE + 4

    @property
    def width(self) -> int:
        return self.right + 3 * MARGIN

    @property
    def height(self) -> int:
        return self.legend + LINE + len(self.told) * LINE + MARGIN

    @property
    def ticks(self) -> list[int]:
        """The numbers of the steps that the axis shows, from 1."""
        each = next((n for n in TICKS if n * self.cell >= CLOSEST), TICKS[-1])
        return [1, *(n for n in range(each, self.steps + 1, each) if n > 1 and (n - 1) * self.cell >= CLOSEST)]

    @property
    def used(self) -> list[tuple[str, bool, int]]:
        """The legend: (name, whether pale, mask) for what there is; content and style always."""
        found = set(self.table.flatten().tolist()) | {CONTENT, STYLE}
        plain = [(MASK_NAMES[mask], False, mask) for mask in sorted(found)]
        return plain + ([("paler: no choice there", True, CONTENT)] if not all(self.choice) else [])

    def find_colour(self, row: int, mask: int) -> tuple[int, int, int]:
        return self.colours[mask] if self.choice[row] else make_pale(self.colours[mask])


def share_style(table: Tensor) -> list[float]:
    """The style's share of what acts, at each step: layers with both count half; 0 where nothing acts."""
    content, style, both = ((table == mask).sum(0).double() for mask in (CONTENT, STYLE, BOTH))
    acting = (content + style + both).clamp(min=1)
    return [float(x) for x in (style + both / 2) / acting]


def frame_map(
    table: Tensor,
    names: Sequence[str] = (),
    choice: Sequence[bool] = (),
    told: Sequence[str] = (),
    colours: Palette | None = None,
) -> MapFrame:
    """Args: table: masks, uint8 [units, steps].  names: of the units' layers; without them the rows are as they come.
    choice: of each unit, whether a method chooses there.  told: text below, of any length."""
    units, steps = (int(n) for n in table.shape)
    found = arrange(names) if names else Layout(list(range(units)), [Group("", 0, units)] if units else [])
    order = torch.tensor(found.order, dtype=torch.long)
    row = max(2, min(12, 240 // max(units, 1)))
    tops: list[int] = []
    bottoms: list[int] = []
    y = MARGIN + LINE
    for group in found.groups:
        count = group.stop - group.start
        height = max(row * count, LINE - 2 if names else 1)
        edges = [y + height * i // count for i in range(count + 1)]
        tops += edges[:-1]
        bottoms += edges[1:]
        y = edges[-1] + GAP
    widest = max((len(group.title) for group in found.groups), default=0)
    left = MARGIN + LETTER * max(widest, len("100 %")) + MARGIN
    cell = max(2, min(16, 960 // max(steps, 1)), -(-320 // max(steps, 1)))
    letters = max((cell * steps + left) // LETTER, 40)
    return MapFrame(
        table[order],
        tuple(names[i] for i in found.order) if names else ("",) * units,
        tuple(bool(choice[i]) for i in found.order) if len(choice) else (True,) * units,
        tuple(found.groups),
        tuple(line for text in told for line in textwrap.wrap(text, letters)),
        tuple(share_style(table)),
        left,
        cell,
        tuple(tops),
        tuple(bottoms),
        colours or next(iter(PALETTES.values())),
    )
