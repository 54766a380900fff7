"""A contact sheet: images in rows and columns with labels, that a person can judge by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP = 128, 4  # of an image and between images, in pixels
MARGIN, HEAD, SIZE = 150, 40, 15  # of the rows' labels, of the columns' labels, of the letters
PAPER, INK = "white", "black"


def draw_sheet(rows: Mapping[str, Sequence[Image.Image | None]], columns: Sequence[str]) -> Image.Image:
    """The sheet.  rows: label → one image, or None for an empty place, for each of ``columns``.

    A label of a column may have several lines.
    """
    step = SIDE + GAP
    sheet = Image.new("RGB", (MARGIN + step * len(columns), HEAD + step * len(rows)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for x, label in enumerate(columns):
        pen.multiline_text((MARGIN + step * x + SIDE / 2, HEAD / 2), label, INK, font, anchor="mm", align="center")
    for y, (label, images) in enumerate(rows.items()):
        pen.multiline_text((MARGIN - 2 * GAP, HEAD + step * y + SIDE / 2), label, INK, font, anchor="rm", align="right")
        for x, image in enumerate(images):
            if image is not None:
                resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                sheet.paste(resized, (MARGIN + step * x, HEAD + step * y))
    return sheet
