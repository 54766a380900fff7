"""The renderings (styles) of the toy's pictures.

A style is a function (labels, tones, colours, rng) -> picture. labels [S, S]: the visible part at each fine pixel, 0 for
the background. tones [parts + 1]: the tone of each part. colours [5, 3] in 0…1: the colour of each tone. The picture is
[SIDE, SIDE, 3] in 0…1; S = SIDE · FINE.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .shapes import MAIN

SIDE, FINE = 64, 3  # side of a picture in pixels, and fine pixels per pixel when it is drawn
S = SIDE * FINE

Array = NDArray[np.float32]
Labels = NDArray[np.uint8]
Style = Callable[[Labels, Labels, Array, np.random.Generator], Array]

WHITE = np.float32([1, 1, 1])
PAPER = np.float32([0.97, 0.95, 0.89])
Y, X = (axis.astype(np.float32) for axis in np.mgrid[0:S, 0:S])
CELL = 4 * FINE  # a texture's period: four pixels


# --- helpers ---


def shrink(fine: Array) -> Array:
    """[S, S, …] -> [SIDE, SIDE, …], the mean over each pixel's fine pixels."""
    return fine.reshape(SIDE, FINE, SIDE, FINE, *fine.shape[2:]).mean((1, 3), dtype=np.float32)


def mix(a: Array, b: Array, t: Array | float) -> Array:
    return a + (b - a) * t


def blur(field: Array, radius: float) -> Array:
    """A plane [h, w] in 0…1, blurred; radius in the plane's pixels."""
    soft = Image.fromarray((field.clip(0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, np.float32) / 255


def find_edges(labels: Labels, width: int) -> NDArray[np.bool_]:
    """Lines, `width` fine pixels wide, along the edges of the parts."""
    line = np.zeros(labels.shape, np.uint8)
    line[1:] |= (labels[1:] != labels[:-1]).astype(np.uint8)
    line[:, 1:] |= (labels[:, 1:] != labels[:, :-1]).astype(np.uint8)
    return np.asarray(Image.fromarray(line * 255).filter(ImageFilter.MaxFilter(width | 1))) > 0


def make_noise(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise [S, S] in about −1…1, interpolated from `cells` × `cells` random values."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((S, S), Image.Resampling.BICUBIC), np.float32)


def make_stripes(along: Array, period: float) -> Array:
    """A sine wave in 0…1 over the values of `along`."""
    return 0.5 + 0.5 * np.sin(along * np.float32(2 * np.pi / period))


# --- styles for the base model ---


def flat(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    return shrink(colours[tones][labels])


def outline(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Thick lines in the object's colour, a white object on a pale background."""
    fill = np.where((labels > 0)[..., None], WHITE, mix(colours[0], WHITE, 0.55))
    return shrink(np.where(find_edges(labels, 6)[..., None], colours[MAIN] * 0.9, fill))


def dots(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Coloured discs on white, every second row shifted."""
    row = np.floor(Y / CELL)
    left = np.where(row % 2 == 1, CELL / 2, 0)
    cy, cx = (row + 0.5) * CELL, (np.floor((X - left) / CELL) + 0.5) * CELL + left
    centre = labels[cy.astype(int), cx.astype(int).clip(0, S - 1)]
    inside = (Y - cy) ** 2 + (X - cx) ** 2 < (0.47 * CELL) ** 2
    return shrink(np.where(inside[..., None], colours[tones][centre], WHITE))


def hatched(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Diagonal strokes over the object, and thinner ones in the other direction over the background."""
    paint = colours[tones][labels]
    strokes = np.where(labels > 0, make_stripes(X + Y, 1.5 * CELL), 0.55 * make_stripes(X - Y, 1.5 * CELL))
    return shrink(mix(paint, WHITE, (strokes > 0.5)[..., None] * np.float32(0.7)))


def shaded(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Round, with light from the upper left and a soft shadow on the background."""
    mask = shrink((labels > 0).astype(np.float32))
    soft = blur(mask, 4)
    light = 1 + 3.0 * (np.roll(soft, (3, 3), (0, 1)) - np.roll(soft, (-3, -3), (0, 1))) * mask
    shadow = 1 - 0.55 * np.roll(blur(mask, 2.5), (4, 4), (0, 1)) * (1 - mask)
    return shrink(colours[tones][labels]) * (light.clip(0.45, 1.5) * shadow)[..., None]


def pixel(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Squares of four pixels."""
    coarse = colours[tones][labels[CELL // 2 :: CELL, CELL // 2 :: CELL]]
    return coarse.repeat(4, 0).repeat(4, 1)


# --- styles for the LoRAs; the base model never sees them ---


def mosaic(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Irregular tiles of different shades, cut at the parts' edges, with light lines between them."""
    n = 12
    pitch = S / n
    seeds = (np.mgrid[-1 : n + 1, -1 : n + 1].transpose(1, 2, 0) + rng.uniform(0.15, 0.85, (n + 2, n + 2, 2))) * pitch
    shade = rng.uniform(0.72, 1.2, (n + 2, n + 2)).astype(np.float32)
    iy, ix = (Y / pitch).astype(int) + 1, (X / pitch).astype(int) + 1
    near, second = np.full((S, S), np.inf, np.float32), np.full((S, S), np.inf, np.float32)
    tile = np.zeros((S, S), int)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            j, i = (iy + dy).clip(0, n + 1), (ix + dx).clip(0, n + 1)
            away = np.hypot(Y - seeds[j, i, 0].astype(np.float32), X - seeds[j, i, 1].astype(np.float32))
            second = np.minimum(second, np.maximum(near, away))
            tile = np.where(away < near, j * (n + 2) + i, tile)
            near = np.minimum(near, away)
    grout = (second - near < 4) | find_edges(labels, 3)
    paint = colours[tones][labels] * shade.reshape(-1)[tile][..., None]
    return shrink(np.where(grout[..., None], np.float32(0.93), paint)).clip(0, 1)


def neon(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Glowing tubes in the dark."""
    line = find_edges(labels, 4)
    glow = mix(colours[MAIN], WHITE, 0.15)
    plane = shrink(line.astype(np.float32))
    halo = 0.75 * blur(plane, 3.0) + 0.5 * blur(plane, 1.2)
    night = colours[0] * 0.13
    return (night + glow * halo[..., None] + plane[..., None] * mix(glow, WHITE, 0.5)).clip(0, 1)


def wash(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Watercolour: uneven edges with darker paint, blotches, and paper that shines through."""
    dy, dx = make_noise(rng, 9) * 7, make_noise(rng, 9) * 7
    moved = labels[(Y + dy).clip(0, S - 1).astype(int), (X + dx).clip(0, S - 1).astype(int)]
    blotch = make_noise(rng, 7) * 0.3 + make_noise(rng, 20) * 0.12
    inside = moved > 0
    strength = np.where(inside, 0.68, 0.22) + blotch * np.where(inside, 0.8, 0.55)
    rim = blur(find_edges(moved, 5).astype(np.float32), 3)
    paint = mix(PAPER, colours[tones][moved], strength.clip(0.05, 0.95)[..., None])
    return shrink(paint * (1 - 0.5 * rim)[..., None])


def engraved(labels: Labels, tones: Labels, colours: Array, rng: np.random.Generator) -> Array:
    """Wavy horizontal ink lines on cream paper; darker areas have thicker lines."""
    darkness = 1 - colours[tones] @ np.float32([0.3, 0.59, 0.11])
    amount = np.where(np.arange(len(tones)) > 0, 0.38 + 0.42 * darkness, 0.16).astype(np.float32)
    wave = Y + 5 * np.sin(X * np.float32(2 * np.pi / S * 2.5) + rng.uniform(0, 6.28))
    ink = (make_stripes(wave, 1.25 * CELL) < amount[labels]) | find_edges(labels, 3)
    return shrink(np.where(ink[..., None], colours[MAIN] * 0.35, PAPER))


BASE: dict[str, Style] = {f.__name__: f for f in (flat, outline, dots, hatched, shaded, pixel)}
LOOKS: dict[str, Style] = {f.__name__: f for f in (mosaic, neon, wash, engraved)}
STYLES = {**BASE, **LOOKS}
