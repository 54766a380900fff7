"""Pictures with captions, on which the toy is trained: an emoji on a coloured background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import write_caption
from .emoji import SIDE, Drawing, Drawings
from .subjects import BASE_STYLES

GROUNDS = {
    "white": (255, 255, 255),
    "cream": (246, 232, 196),
    "sky": (160, 208, 240),
    "mint": (176, 226, 190),
    "rose": (246, 196, 200),
    "grey": (176, 178, 186),
}
SIZE, SHIFT = (0.87, 0.95), 0.02  # the drawing's side and its largest shift, as shares of the picture's side


@dataclass(frozen=True)
class Scene:
    """What a picture shows. emoji: its name. word: for it, in the caption. source: the set."""

    emoji: str
    word: str
    source: str
    ground: str

    @property
    def caption(self) -> str:
        return write_caption(self.word, self.ground, BASE_STYLES[self.source])


def draw_scene(scene: Scene, drawings: Drawings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of the scene, [SIDE, SIDE, 3] in 0…255, with the drawing near the middle."""
    return place_drawing(
        drawings[scene.source, scene.emoji], GROUNDS[scene.ground], rng.uniform(*SIZE), rng.uniform(-SHIFT, SHIFT, 2)
    )


def place_drawing(
    drawing: Drawing, ground: tuple[int, int, int], size: float, shift: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The drawing on a plain background.  size, shift: shares of the picture's side; the middle has the shift (0, 0)."""
    side = round(size * SIDE)
    small = Image.fromarray(drawing, "RGBA").convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    picture = Image.new("RGBA", (SIDE, SIDE), (*ground, 255))
    left, top = (round((SIDE - side) / 2 + s * SIDE) for s in shift)
    picture.alpha_composite(small, (max(0, left), max(0, top)), (max(0, -left), max(0, -top)))
    return np.asarray(picture.convert("RGB"))
