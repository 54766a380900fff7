"""The selection map: layers down, model calls across; content blue, style green (as in the paper's figure 6)."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

# by mask: none, content, style, both
COLOURS = ((236, 236, 236), (66, 114, 186), (98, 168, 88), (112, 86, 150))
NAMES = ("none", "content", "style", "both")
CELL, ROW, MARGIN, LEGEND = 16, 2, 8, 24


def draw_plan(table: Tensor) -> Image.Image:
    """An RGB picture of a plan's table (uint8 [units, calls]): a unit is ``ROW`` pixels high, top first; a legend below."""
    units, steps = table.shape
    width, height = max(CELL * steps, 300), max(ROW * units, 2)
    small = Image.new("RGB", (steps, units))
    small.putdata([COLOURS[m] for m in table.flatten().tolist()])
    picture = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LEGEND), "white")
    picture.paste(small.resize((width, height), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(picture)
    x, y = MARGIN, height + 2 * MARGIN
    for mask in sorted(set(table.flatten().tolist()) | {1, 2}):
        pen.rectangle((x, y, x + 10, y + 10), fill=COLOURS[mask])
        pen.text((x + 14, y - 1), NAMES[mask], fill="black")
        x += 68
    return picture
