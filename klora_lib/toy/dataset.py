"""Pictures with captions, on which the toy is trained.  The same seed gives the same picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from . import shapes, styles, write_caption
from .styles import Array, S

COLOURS = {
    "red": (214, 40, 45),
    "orange": (242, 135, 25),
    "yellow": (246, 208, 40),
    "green": (45, 155, 70),
    "teal": (20, 165, 170),
    "blue": (45, 90, 210),
    "purple": (130, 60, 175),
    "pink": (238, 110, 170),
}
GROUNDS = {
    "cream": (244, 234, 204),
    "sky": (160, 208, 240),
    "mint": (176, 226, 190),
    "rose": (246, 196, 200),
    "grey": (140, 142, 150),
    "navy": (34, 44, 86),
}
SUBJECT_COLOURS = {  # the two colours of each subject
    "robot": ((90, 140, 195), (242, 135, 25)),
    "cat": ((226, 140, 60), (250, 225, 190)),
    "teapot": ((130, 60, 175), (246, 208, 40)),
    "rocket": ((225, 225, 232), (214, 40, 45)),
}
PLAIN = "shaded"  # the rendering that captions do not mention, as captions of photographs rarely say "photograph"
REACH, SHIFT, TURN = (20.5, 23.5), 2.5, 7.0  # an object's half size and shift in pixels, its rotation in degrees


@dataclass(frozen=True)
class Scene:
    """What a picture shows. colour: None for a subject in its own two colours."""

    thing: str
    ground: str
    style: str
    colour: str | None = None

    @property
    def caption(self) -> str:
        paint = f"{self.colour} " if self.colour else ""
        return write_caption(paint + self.thing, self.ground, None if self.style == PLAIN else self.style)


def choose_scene(rng: np.random.Generator, things: list[str], looks: list[str]) -> Scene:
    """A random scene: one of `things`, one of `looks`, any colour, any background."""
    thing, look, ground, colour = (str(rng.choice(words)) for words in (things, looks, list(GROUNDS), list(COLOURS)))
    return Scene(thing, ground, look, None if thing in shapes.SUBJECTS else colour)


def mix_tones(main: tuple[int, ...], second: tuple[int, ...], ground: tuple[int, ...]) -> Array:
    """The colour of each tone, [5, 3] in 0…1."""
    m = np.array(main, np.float32)
    return np.stack([np.float32(ground), m, m * 0.45, m + (255 - m) * 0.68, np.float32(second)]) / 255


def draw_picture(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of the scene, [64, 64, 3] in 0…255, with the object near the middle and slightly rotated."""
    main, second = SUBJECT_COLOURS[scene.thing] if scene.colour is None else (COLOURS[scene.colour], COLOURS[scene.colour])
    labels, tones = paint_parts(shapes.OBJECTS[scene.thing](), rng)
    colours = mix_tones(main, second, GROUNDS[scene.ground])
    drawn = styles.STYLES[scene.style](labels, tones, colours, rng)
    return np.asarray((drawn.clip(0, 1) * 255).round(), np.uint8)


def paint_parts(parts: list[shapes.Part], rng: np.random.Generator) -> tuple[styles.Labels, styles.Labels]:
    """Paint an object's parts over one another at a random position: labels [S, S], and the tone of each label."""
    angle = np.radians(rng.uniform(-TURN, TURN))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    size = rng.uniform(*REACH) * styles.FINE
    middle = S / 2 + rng.uniform(-SHIFT, SHIFT, 2) * styles.FINE
    canvas = Image.new("L", (S, S))
    pen = ImageDraw.Draw(canvas)
    for number, (_, polygon) in enumerate(parts, 1):
        pen.polygon([tuple(p) for p in (polygon @ turn * size + middle).tolist()], fill=number)
    tones = np.array([shapes.GROUND, *(tone for tone, _ in parts)], np.uint8)
    return np.asarray(canvas), tones
