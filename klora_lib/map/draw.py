"""The selection map as a picture: a row for each layer, a column for each step; content blue, style green."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .colours import Colour, Palette, make_pale
from .frame import LETTER, LINE, MARGIN, MapFrame, frame_map

INK, LIGHT = (40, 40, 40), (150, 150, 150)


def draw_plan(
    table: Tensor,
    names: Sequence[str] = (),
    choice: Sequence[bool] = (),
    told: Sequence[str] = (),
    colours: Palette | None = None,
    axis: str = "sampling step",
) -> Image.Image:
    """An RGB picture of a plan's table, with the blocks' names, both axes, the style's share and a legend.

    See ``frame_map``.
    """
    frame = frame_map(table, names, choice, told, colours)
    picture = Image.new("RGB", (frame.width, frame.height), "white")
    draw_cells(picture, frame)
    pen = Pen(picture)
    pen.write(MARGIN, MARGIN - 2, "layers, by block" if names else "layers")
    for group in frame.groups:
        top, bottom = frame.tops[group.start], frame.bottoms[group.stop - 1]
        pen.write(frame.left - 4, (top + bottom) // 2 - 6, group.title, before=True)
    draw_curve(pen, frame)
    for step in frame.ticks:
        x = frame.left + frame.cell * (step - 1) + frame.cell // 2
        pen.pen.line((x, frame.curve[1], x, frame.curve[1] + 3), fill=LIGHT)
        pen.write(x, frame.axis, str(step), middle=True)
    pen.write((frame.left + frame.right) // 2, frame.axis + LINE, axis, middle=True)
    x = MARGIN
    for name, pale, mask in frame.used:
        colour = make_pale(frame.colours[mask]) if pale else frame.colours[mask]
        pen.pen.rectangle((x, frame.legend, x + 10, frame.legend + 10), fill=colour)
        pen.write(x + 14, frame.legend - 1, name)
        x += 14 + LETTER * (len(name) + 3)
    for i, line in enumerate(frame.told):
        pen.write(MARGIN, frame.legend + LINE * (i + 1) + 2, line)
    return picture


def draw_cells(picture: Image.Image, frame: MapFrame) -> None:
    """One strip of pixels for each row, as wide as there are steps, put where the row is."""
    for row, masks in enumerate(frame.table.tolist()):
        strip = Image.new("RGB", (max(frame.steps, 1), 1))
        strip.putdata([frame.find_colour(row, mask) for mask in masks])
        size = frame.cell * frame.steps, frame.bottoms[row] - frame.tops[row]
        picture.paste(strip.resize(size, Image.Resampling.NEAREST), (frame.left, frame.tops[row]))


def draw_curve(pen: Pen, frame: MapFrame) -> None:
    """The style's share, a stair."""
    top, bottom = frame.curve
    pen.write(frame.left, top - LINE, "share of style, of what acts (both: half)")
    pen.write(frame.left - 4, top - 6, "100 %", before=True)
    pen.write(frame.left - 4, bottom - 8, "0 %", before=True)
    pen.pen.rectangle((frame.left, top, frame.right, bottom), outline=LIGHT)
    for step, share in enumerate(frame.share):
        x = frame.left + frame.cell * step
        y = bottom - round((bottom - top) * share)
        if y < bottom:
            pen.pen.rectangle((x, y, x + frame.cell - 1, bottom - 1), fill=frame.colours[2])


class Pen:
    """Writes and draws on a picture with the font that Pillow has built in, which knows Latin letters alone."""

    def __init__(self, picture: Image.Image):
        self.pen = ImageDraw.Draw(picture)
        self.font: Any = ImageFont.load_default()

    def write(
        self, x: int, y: int, text: str, before: bool = False, middle: bool = False, fill: Colour = INK
    ) -> None:
        """``text`` beginning at ``x``; or ending there, or with its middle there."""
        text = text.encode("latin-1", "replace").decode("latin-1")
        width = round(self.font.getlength(text))
        self.pen.text((x - width if before else x - width // 2 if middle else x, y), text, fill=fill, font=self.font)
