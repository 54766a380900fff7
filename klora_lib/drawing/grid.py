"""A labelled grid of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 6  # pixels


def draw_grid(
    rows: Sequence[Sequence[Image.Image | None]], labels: Sequence[str], heads: Sequence[str], least: int = 0
) -> Image.Image:
    """A grid of pictures of one size, with a label to the left of each row and a heading above each column.

    None leaves a place empty.  A heading may have several lines.  Pictures narrower than `least` pixels are enlarged.
    """
    width, height = next(image.size for row in rows for image in row if image is not None)
    factor = -(-least // width) if width < least else 1
    width, height = factor * width, factor * height
    font = ImageFont.load_default(max(11, min(width, height) // 12))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [pen.multiline_textbbox((0, 0), text, font) for text in (*labels, *heads)]
    left = 2 * GAP + int(max(box[2] for box in boxes[: len(labels)]))
    top = 2 * GAP + int(max(box[3] for box in boxes))
    column = max(width, int(max(box[2] for box in boxes[len(labels) :])))  # a heading may be wider than the pictures
    picture = Image.new("RGB", (left + len(heads) * (column + GAP), top + len(rows) * (height + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for x, head in enumerate(heads):
        middle = left + x * (column + GAP) + column / 2, top / 2
        pen.multiline_text(middle, head, "black", font, anchor="mm", align="center")
    for y, (label, row) in enumerate(zip(labels, rows)):
        pen.text((left - GAP, top + y * (height + GAP) + height / 2), label, fill="black", font=font, anchor="rm")
        for x, image in enumerate(row):
            if image is not None:
                place = left + x * (column + GAP) + (column - width) // 2, top + y * (height + GAP)
                picture.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), place)
    return picture
