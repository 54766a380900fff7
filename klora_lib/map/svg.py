"""The selection map as SVG: the same rows, columns and colours as the PNG, and each row tells its layer's name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from torch import Tensor

from .colours import Palette, format_colour, make_pale
from .frame import LETTER, LINE, MARGIN, frame_map


def draw_svg(
    table: Tensor,
    names: Sequence[str],
    choice: Sequence[bool] = (),
    told: Sequence[str] = (),
    colours: Palette | None = None,
    axis: str = "sampling step",
) -> str:
    """See ``draw_plan``.  ``names``: of the units' layers, shown where the pointer is."""
    frame = frame_map(table, names, choice, told, colours)
    texts: list[str] = []

    def write(x: float, y: float, text: str, anchor: str = "start") -> None:
        texts.append(f'<text x="{x:g}" y="{y + 10:g}" text-anchor="{anchor}">{clean(text)}</text>')

    cells: list[str] = []
    told_rows: list[str] = []
    for row, masks in enumerate(frame.table.tolist()):
        top, bottom = frame.tops[row], frame.bottoms[row]
        for x, length, mask in trace_runs(masks):
            place = f'x="{frame.left + frame.cell * x}" y="{top}" width="{frame.cell * length}" height="{bottom - top}"'
            cells.append(f'<rect {place} fill="{format_colour(frame.find_colour(row, mask))}"/>')
        place = f'x="{frame.left}" y="{top}" width="{frame.right - frame.left}" height="{bottom - top}"'
        told_rows.append(f"<rect {place}><title>{clean(frame.names[row])}</title></rect>")
    write(MARGIN, MARGIN - 2, "layers, by block")
    for group in frame.groups:
        write(frame.left - 4, (frame.tops[group.start] + frame.bottoms[group.stop - 1]) / 2 - 7, group.title, "end")
    top, bottom = frame.curve
    write(frame.left, top - LINE, "share of style, of what acts (both: half)")
    write(frame.left - 4, top - 6, "100 %", "end")
    write(frame.left - 4, bottom - 8, "0 %", "end")
    for step in frame.ticks:
        write(frame.left + frame.cell * (step - 0.5), frame.axis, str(step), "middle")
    write((frame.left + frame.right) / 2, frame.axis + LINE, axis, "middle")
    x, legend = MARGIN, []
    for name, pale, mask in frame.used:
        colour = make_pale(frame.colours[mask]) if pale else frame.colours[mask]
        legend.append(f'<rect x="{x}" y="{frame.legend}" width="10" height="10" fill="{format_colour(colour)}"/>')
        write(x + 14, frame.legend - 1, name)
        x += 14 + LETTER * (len(name) + 3)
    for i, line in enumerate(frame.told):
        write(MARGIN, frame.legend + LINE * (i + 1) + 2, line)
    stair = "".join(
        f"H{frame.left + frame.cell * step}V{bottom - (bottom - top) * share:g}" for step, share in enumerate(frame.share)
    )
    size = f'width="{frame.width}" height="{frame.height}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<g id="cells" shape-rendering="crispEdges">', *cells, "</g>",
        f'<path d="M{frame.left} {bottom}{stair}H{frame.right}V{bottom}z" fill="{format_colour(frame.colours[2])}"/>',
        f'<path d="M{frame.left} {top}H{frame.right}V{bottom}H{frame.left}z" fill="none" stroke="#999"/>',
        '<g fill-opacity="0">', *told_rows, "</g>",
        *legend, *texts,
        "</svg>",
    ]) + "\n"  # fmt: skip


def trace_runs(masks: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first column, number of columns, mask) of each run within a row."""
    runs, x = [], 0
    for mask, run in groupby(masks):
        length = len(list(run))
        runs.append((x, length, mask))
        x += length
    return runs


def clean(name: str) -> str:
    """A layer's name for XML, which has no way to write control characters: these come from a file."""
    return escape("".join(c if c.isprintable() else "?" for c in name))
