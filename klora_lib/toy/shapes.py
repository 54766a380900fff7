"""The objects of the toy's pictures. Each is a list of parts; later parts are painted over earlier ones.

A part is (tone, polygon [n, 2]). Coordinates are relative to the object: x to the right, y down, about −1…1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
Part = tuple[int, Polygon]

GROUND, MAIN, DARK, LIGHT, SECOND = range(5)  # tones; a part with the tone GROUND is a hole


def poly(*points: tuple[float, float]) -> Polygon:
    return np.array(points, dtype=np.float64)


def rect(left: float, top: float, right: float, bottom: float) -> Polygon:
    return poly((left, top), (right, top), (right, bottom), (left, bottom))


def ellipse(x: float, y: float, rx: float, ry: float | None = None, start: float = 0, end: float = 360) -> Polygon:
    """An ellipse, or only the part between two angles in degrees (0 is to the right, 90 down)."""
    angles = np.radians(np.linspace(start, end, 40))
    return np.stack([x + rx * np.cos(angles), y + (ry or rx) * np.sin(angles)], 1)


def band(x: float, y: float, outer: float, inner: float, start: float, end: float) -> Polygon:
    """A band between two arcs, for example a handle.  Angles in degrees."""
    return np.concatenate([ellipse(x, y, outer, None, start, end), ellipse(x, y, inner, None, start, end)[::-1]])


def make_star(n: int, outer: float, inner: float, turn: float = -90) -> Polygon:
    """A star with n points.  ``turn``: the angle of the first point in degrees."""
    return np.array(
        [
            (r * math.cos(a), r * math.sin(a))
            for i in range(2 * n)
            for r, a in [(inner if i % 2 else outer, math.radians(turn + 180 * i / n))]
        ]
    )


# --- objects for the base model ---


def ball() -> list[Part]:
    stripe = np.concatenate([ellipse(0, 0, 0.9, 0.3, 180, 0), ellipse(0, 0.25, 0.86, 0.3, 0, 180)])
    return [(MAIN, ellipse(0, 0, 0.92)), (LIGHT, stripe), (LIGHT, ellipse(-0.35, -0.5, 0.2, 0.14))]


def box() -> list[Part]:
    return [
        (MAIN, rect(-0.85, -0.35, 0.4, 0.9)),
        (LIGHT, poly((-0.85, -0.35), (-0.4, -0.85), (0.88, -0.85), (0.4, -0.35))),
        (DARK, poly((0.4, -0.35), (0.88, -0.85), (0.88, 0.4), (0.4, 0.9))),
    ]


def star() -> list[Part]:
    return [(MAIN, make_star(5, 1.05, 0.45)), (LIGHT, make_star(5, 0.5, 0.22))]


def house() -> list[Part]:
    return [
        (MAIN, rect(-0.7, -0.1, 0.7, 0.9)),
        (DARK, poly((-0.98, -0.1), (0, -0.98), (0.98, -0.1))),
        (LIGHT, rect(-0.52, 0.12, -0.1, 0.5)),
        (DARK, rect(0.12, 0.22, 0.5, 0.9)),
    ]


def tree() -> list[Part]:
    return [
        (DARK, rect(-0.16, 0.4, 0.16, 1.0)),
        (MAIN, poly((-0.85, 0.55), (0, -0.35), (0.85, 0.55))),
        (LIGHT, poly((-0.68, 0.08), (0, -0.68), (0.68, 0.08))),
        (MAIN, poly((-0.5, -0.36), (0, -1.02), (0.5, -0.36))),
    ]


def fish() -> list[Part]:
    return [
        (DARK, poly((0.4, 0), (1.05, -0.55), (0.9, 0), (1.05, 0.55))),
        (DARK, poly((-0.25, -0.4), (0.3, -0.8), (0.35, -0.3))),
        (MAIN, ellipse(-0.2, 0, 0.8, 0.52)),
        (LIGHT, ellipse(-0.62, -0.12, 0.17)),
        (DARK, ellipse(-0.64, -0.12, 0.08)),
        (LIGHT, band(-0.25, 0, 0.45, 0.34, -50, 50)),
    ]


def mushroom() -> list[Part]:
    stem = poly((-0.28, 0), (0.28, 0), (0.38, 0.95), (-0.38, 0.95))
    spots = [(LIGHT, ellipse(x, y, r)) for x, y, r in ((-0.5, -0.2, 0.17), (0.08, -0.52, 0.2), (0.58, -0.16, 0.15))]
    return [(LIGHT, stem), (MAIN, ellipse(0, 0.1, 0.98, 0.98, 180, 360)), *spots]


def cup() -> list[Part]:
    return [
        (DARK, band(0.5, 0.02, 0.5, 0.28, -90, 90)),
        (MAIN, poly((-0.8, -0.7), (0.55, -0.7), (0.4, 0.85), (-0.65, 0.85))),
        (LIGHT, ellipse(-0.12, -0.7, 0.68, 0.2)),
        (DARK, ellipse(-0.12, -0.66, 0.5, 0.11)),
    ]


def key() -> list[Part]:
    return [
        (MAIN, rect(-0.3, -0.13, 1.0, 0.13)),
        (DARK, rect(0.42, 0.1, 0.6, 0.5)),
        (DARK, rect(0.78, 0.1, 0.98, 0.62)),
        (MAIN, ellipse(-0.5, 0, 0.5)),
        (GROUND, ellipse(-0.55, 0, 0.22)),
    ]


def car() -> list[Part]:
    return [
        (MAIN, poly((-0.55, -0.1), (-0.3, -0.62), (0.35, -0.62), (0.65, -0.1))),
        (MAIN, rect(-1.0, -0.12, 1.0, 0.42)),
        (LIGHT, poly((-0.4, -0.12), (-0.22, -0.5), (0, -0.5), (0, -0.12))),
        (LIGHT, poly((0.1, -0.12), (0.1, -0.5), (0.28, -0.5), (0.48, -0.12))),
        *[(tone, ellipse(x, 0.45, r)) for x in (-0.55, 0.55) for tone, r in ((DARK, 0.3), (LIGHT, 0.13))],
    ]


def heart() -> list[Part]:
    t = np.linspace(0, 2 * math.pi, 60)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outline = np.stack([np.sin(t) ** 3, -y / 16 - 0.1], 1)
    return [(MAIN, outline), (DARK, outline * 0.55), (LIGHT, ellipse(-0.55, -0.55, 0.13, 0.1))]


def flower() -> list[Part]:
    petals = [
        (MAIN, ellipse(0.5 * math.cos(a), -0.3 + 0.5 * math.sin(a), 0.34)) for a in np.radians(np.arange(-90, 270, 72))
    ]
    stalk = [(DARK, rect(-0.08, 0, 0.08, 1.0)), (DARK, ellipse(0.32, 0.72, 0.3, 0.13))]
    return [*stalk, *petals, (LIGHT, ellipse(0, -0.3, 0.3))]


# --- subjects for the LoRAs, each with two colours of its own; the base model never sees them ---


def robot() -> list[Part]:
    eyes = [(LIGHT, ellipse(x, -0.42, 0.15)) for x in (-0.25, 0.25)]
    return [
        (DARK, rect(-0.04, -0.98, 0.04, -0.7)),
        (SECOND, ellipse(0, -0.98, 0.11)),
        (DARK, rect(-0.42, 0.7, -0.14, 1.02)),
        (DARK, rect(0.14, 0.7, 0.42, 1.02)),
        (SECOND, rect(-0.92, 0.05, -0.6, 0.6)),
        (SECOND, rect(0.6, 0.05, 0.92, 0.6)),
        (MAIN, rect(-0.56, 0.0, 0.56, 0.75)),
        (MAIN, rect(-0.5, -0.74, 0.5, -0.08)),
        *eyes,
        (DARK, rect(-0.25, -0.22, 0.25, -0.15)),
        (SECOND, rect(-0.28, 0.2, 0.28, 0.55)),
    ]


def cat() -> list[Part]:
    ears = [
        (tone, poly((s * 0.85, -0.98 + 0.14 * i), (s * (0.25 + 0.12 * i), -0.5), (s * (0.82 - 0.06 * i), -0.1)))
        for s in (-1, 1)
        for i, tone in enumerate((MAIN, SECOND))
    ]
    eyes = [(tone, ellipse(s * 0.36, -0.08, r, 0.19)) for s in (-1, 1) for tone, r in ((LIGHT, 0.2), (DARK, 0.08))]
    whiskers = [
        (DARK, poly((s * 0.4, 0.38 + d), (s * 1.05, 0.3 + 2.2 * d), (s * 1.05, 0.37 + 2.2 * d), (s * 0.4, 0.42 + d)))
        for s in (-1, 1)
        for d in (0.0, 0.12)
    ]
    return [
        *ears,
        (MAIN, ellipse(0, 0.12, 0.86, 0.76)),
        *eyes,
        (SECOND, ellipse(0, 0.48, 0.42, 0.3)),
        *whiskers,
        (DARK, poly((-0.13, 0.28), (0.13, 0.28), (0, 0.45))),
    ]


def teapot() -> list[Part]:
    return [
        (SECOND, band(-0.55, 0.2, 0.48, 0.28, 90, 270)),
        (SECOND, poly((0.4, 0.5), (0.4, 0.1), (0.72, -0.1), (0.85, -0.5), (1.08, -0.42), (0.92, 0.2))),
        (MAIN, ellipse(0.02, 0.26, 0.66, 0.58)),
        (DARK, rect(-0.4, 0.76, 0.44, 0.9)),
        (SECOND, ellipse(0.02, -0.22, 0.44, 0.24, 180, 360)),
        (DARK, ellipse(0.02, -0.54, 0.12)),
        *[(LIGHT, ellipse(0.02 + dx, 0.28 + dy, 0.11)) for dx, dy in ((-0.3, 0), (0.3, 0), (0, -0.2), (0, 0.24))],
    ]


def rocket() -> list[Part]:
    hull = np.concatenate(
        [poly((-0.38, 0.55), (-0.42, -0.1), (-0.26, -0.62)), poly((0, -1.05), (0.26, -0.62), (0.42, -0.1), (0.38, 0.55))]
    )
    return [
        (LIGHT, poly((-0.24, 0.5), (0.24, 0.5), (0, 1.05))),
        (SECOND, poly((-0.36, 0.05), (-0.85, 0.6), (-0.8, 0.88), (-0.3, 0.58))),
        (SECOND, poly((0.36, 0.05), (0.85, 0.6), (0.8, 0.88), (0.3, 0.58))),
        (MAIN, hull),
        (SECOND, poly((-0.27, -0.6), (0, -1.05), (0.27, -0.6))),
        (DARK, ellipse(0, -0.2, 0.25)),
        (LIGHT, ellipse(0, -0.2, 0.16)),
        (DARK, rect(-0.38, 0.4, 0.38, 0.56)),
    ]


BASE: dict[str, Callable[[], list[Part]]] = {
    f.__name__: f for f in (ball, box, star, house, tree, fish, mushroom, cup, key, car, heart, flower)
}
SUBJECTS: dict[str, Callable[[], list[Part]]] = {f.__name__: f for f in (robot, cat, teapot, rocket)}
OBJECTS = {**BASE, **SUBJECTS}
