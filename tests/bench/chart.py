"""Line charts side by side as one SVG, written by hand: numbers from zero, a legend below the title, a name at each axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]
COLOURS = ("#2f6db3", "#3a8f4d", "#b3541e", "#7a4fa3")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 360, 280, 58, 62, 46, 16
ACROSS = 2


@dataclass(frozen=True)
class Panel:
    title: str
    x: str
    y: str
    lines: Mapping[str, Points]  # name → (x, y); both from 0 up


def find_ticks(most: float) -> list[float]:
    """Round numbers from 0 to one that is at least ``most``: steps of 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * 5 >= most * (1 - 1e-9))
    return [round(i * step, 10) for i in range(math.ceil(most / step * (1 - 1e-9)) + 1)]


def write_text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def draw_panel(panel: Panel) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    xs, ys = (find_ticks(max(point[axis] for point in points)) for axis in (0, 1))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * x / xs[-1], TOP + high * (1 - y / ys[-1])

    out = [write_text(WIDTH / 2, 20, panel.title, more=' font-weight="bold" font-size="13"')]
    for y in ys:
        height = place(0, y)[1]
        out.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(write_text(LEFT - 6, height + 4, f"{y:g}", "end"))
    out += [write_text(place(x, 0)[0], HEIGHT - BOTTOM + 16, f"{x:g}") for x in xs]
    out.append(write_text(LEFT + wide / 2, HEIGHT - 10, panel.x))
    middle = TOP + high / 2
    out.append(write_text(14, middle, panel.y, more=f' transform="rotate(-90 14 {middle:.1f})"'))
    for i, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        placed = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        start = LEFT + i * wide / len(panel.lines)
        out.append(f'<rect x="{start:.1f}" y="34" width="10" height="10" fill="{colour}"/>')
        out.append(write_text(start + 14, 43, name, "start"))
    return out


def draw_charts(panels: Sequence[Panel]) -> str:
    rows = -(-len(panels) // ACROSS)
    wide, high = WIDTH * min(ACROSS, len(panels)), HEIGHT * rows
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
    ]
    for i, panel in enumerate(panels):
        out += [f'<g transform="translate({WIDTH * (i % ACROSS)} {HEIGHT * (i // ACROSS)})">', *draw_panel(panel), "</g>"]
    return "\n".join([*out, "</svg>", ""])
