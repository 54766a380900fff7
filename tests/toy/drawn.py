"""Drawings for tests, instead of the emoji, which are fetched only for training: simple shapes, one for each (set, name)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from klora_lib.toy import emoji, subjects


def draw_shape(seed: int) -> emoji.Drawing:
    """A coloured shape on a transparent ground."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (emoji.SIDE, emoji.SIDE))
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 10 + rng.integers(20), 10 + rng.integers(20), 90 + rng.integers(25), 90 + rng.integers(25)
    shape = (pen.ellipse, pen.rectangle)[seed % 2]
    shape((int(left), int(top), int(right), int(bottom)), fill=(*(int(c) for c in rng.integers(0, 200, 3)), 255))
    return np.asarray(picture)


def write_drawings(folder: Path) -> dict[tuple[str, str], emoji.Drawing]:
    """A drawing for each set and each name that is trained on, written where `emoji.draw_sets` keeps its own."""
    names = [*subjects.BASE.values(), *subjects.SUBJECTS]
    made = {(each, name): draw_shape(n) for n, (each, name) in enumerate((s, n) for s in emoji.SETS for n in names)}
    emoji.write_drawings(made, folder)
    return made
