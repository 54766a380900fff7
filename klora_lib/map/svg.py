"""The selection map as SVG: the same rows, columns and colours as the PNG, and each row tells its layer's name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from torch import Tensor

from .draw import CELL, LEGEND, MARGIN, MASK_COLOURS, MASK_NAMES, ROW


def draw_svg(table: Tensor, names: Sequence[str]) -> str:
    """A picture of a plan's table (masks, uint8 [units, calls]).  ``names``: the units', shown where the pointer is."""
    units, steps = table.shape
    rows: list[list[int]] = table.tolist()
    width, height = max(CELL * steps, 300), max(ROW * units, 2)
    used = sorted({mask for row in rows for mask in row} | {1, 2})
    paths = {mask: "".join(trace_runs(rows, mask)) for mask in used}
    columns, lines = width / max(steps, 1), height / max(units, 1)
    drawn = [f'<path fill="{format_colour(mask)}" d="{path}"/>' for mask, path in paths.items() if path]
    told = [f'<rect y="{i}" width="{steps}" height="1"><title>{clean(name)}</title></rect>' for i, name in enumerate(names)]
    y = height + 2 * MARGIN
    legend = [
        f'<rect x="{x}" y="{y}" width="10" height="10" fill="{format_colour(mask)}"/>'
        f'<text x="{x + 14}" y="{y + 9}">{MASK_NAMES[mask]}</text>'
        for x, mask in zip(range(MARGIN, MARGIN + 68 * len(used), 68), used)
    ]
    size = f'width="{width + 2 * MARGIN}" height="{height + 2 * MARGIN + LEGEND}"'
    scale = f'transform="translate({MARGIN} {MARGIN}) scale({columns:g} {lines:g})"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g {scale} shape-rendering="crispEdges">', *drawn, '<g fill-opacity="0">', *told, "</g>", "</g>",
        *legend,
        "</svg>",
    ]) + "\n"  # fmt: skip


def trace_runs(rows: Sequence[Sequence[int]], mask: int) -> list[str]:
    """The cells with ``mask`` as parts of a path, in units of cells: one rectangle for each run within a row."""
    parts = []
    for y, row in enumerate(rows):
        x = 0
        for found, run in groupby(row):
            length = len(list(run))
            if found == mask:
                parts.append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    return parts


def format_colour(mask: int) -> str:
    return "#" + "".join(f"{part:02x}" for part in MASK_COLOURS[mask])


def clean(name: str) -> str:
    """A layer's name for XML, which has no way to write control characters: these come from a file."""
    return escape("".join(c if c.isprintable() else "?" for c in name))
