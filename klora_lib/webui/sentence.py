"""A sentence as a picture, in place of an image that could not be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = (246, 242, 236), (120, 30, 30)
SIZES = (40, 32, 26, 22, 18, 16, 14, 12, 10, 8)  # of the letters, in pixels


def draw_sentence(sentence: str, size: tuple[int, int], load_font: Callable[[int], Any] | None = None) -> Image.Image:
    """``sentence`` on an image of ``size`` (width, height), in the largest letters that fit; cut if none fit."""
    image = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    margin = max(2, min(size) // 24)
    room = (size[0] - 2 * margin, size[1] - 2 * margin)
    font: Any = None
    lines: list[str] = []
    for points in SIZES:
        font = load_font(points) if load_font is not None else ImageFont.load_default()
        lines = wrap(sentence, room[0], font)
        if len(lines) * measure_line(font) <= room[1]:
            break
    draw.multiline_text((margin, margin), "\n".join(lines), fill=INK, font=font, spacing=0)
    return image


def measure_line(font: Any) -> float:
    """Pixels from one line to the next."""
    _, top, _, bottom = font.getbbox("Ag|")
    return bottom - min(top, 0) + 1


def wrap(sentence: str, width: float, font: Any) -> list[str]:
    """The sentence in lines of at most ``width`` pixels; a longer word is broken."""
    lines = [""]
    for word in sentence.split():
        for piece in break_word(word, width, font):
            longer = f"{lines[-1]} {piece}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(piece)
    return [line for line in lines if line]


def break_word(word: str, width: float, font: Any) -> Sequence[str]:
    pieces = [""]
    for char in word:
        if pieces[-1] and font.getlength(pieces[-1] + char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces
