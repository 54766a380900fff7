"""The selection map: a row for each layer, a column for each denoiser call; content blue, style green (paper, figure 6)."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

# index: the mask; none, content, style, both
MASK_COLOURS = ((236, 236, 236), (66, 114, 186), (98, 168, 88), (112, 86, 150))
MASK_NAMES = ("none", "content", "style", "both")
CELL, ROW, MARGIN, LEGEND = 16, 2, 8, 24


def draw_plan(table: Tensor) -> Image.Image:
    """An RGB picture of a plan's table (masks, uint8 [units, calls]) with a legend below it.

    A unit is ``ROW`` pixels high, the first one at the top; a call is ``CELL`` pixels wide.
    """
    units, steps = table.shape
    width, height = max(CELL * steps, 300), max(ROW * units, 2)
    small = Image.new("RGB", (steps, units))
    small.putdata([MASK_COLOURS[m] for m in table.flatten().tolist()])
    picture = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LEGEND), "white")
    picture.paste(small.resize((width, height), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(picture)
    x, y = MARGIN, height + 2 * MARGIN
    for mask in sorted(set(table.flatten().tolist()) | {1, 2}):
        pen.rectangle((x, y, x + 10, y + 10), fill=MASK_COLOURS[mask])
        pen.text((x + 14, y - 1), MASK_NAMES[mask], fill="black")
        x += 68
    return picture
