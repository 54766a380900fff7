"""A map as JSON, for the page that draws it: javascript/klora_map.js."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..rule.plan import Plan, format_row
from .colours import Palette, format_colour, make_pale
from .frame import share_style
from .layout import Layout

Json = dict[str, Any]


def describe_layers(plan: Plan, layout: Layout) -> Json:
    """What of a map does not depend on the settings: the rows' layers, in the model's order, and their groups."""
    rows = [plan.units[i] for i in layout.order]
    return {
        "names": [unit.name for unit in rows],
        "groups": [list(group) for group in layout.groups],  # title, first row, row after the last
        "content_ranks": [unit.content.rank if unit.content else 0 for unit in rows],
        "style_ranks": [unit.style.rank if unit.style else 0 for unit in rows],
    }


def describe_map(plan: Plan, table: Tensor, colours: Palette, layout: Layout) -> Json:
    """What depends on them: of each row its choices (a number of ``patterns``, one letter a step), and why.

    Args: table: masks of ``plan``, uint8 [units, steps].
    """
    order = layout.order
    patterns: dict[str, int] = {}
    rows = [patterns.setdefault(format_row(table[i]), len(patterns)) for i in order]
    scores, decided = plan.facts.scores, plan.facts.decided.tolist()
    ratios = (scores.content_topk / (plan.gamma * scores.style_topk)).tolist()
    return {
        "steps": int(table.shape[1]),
        "patterns": list(patterns),
        "rows": rows,
        "choice": [int(decided[i]) for i in order],
        "ratios": [round_number(ratios[i]) if decided[i] else None for i in order],
        "share": [round(x, 4) for x in share_style(table)],
        "gamma": round_number(plan.gamma),
        "colours": [format_colour(c) for c in colours],  # none, content, style, both
        "pale": [format_colour(make_pale(c)) for c in colours],  # where there is no choice
    }


def round_number(x: float) -> float | None:
    """Four digits of it; None for what JSON has no number for."""
    return float(f"{x:.4g}") if math.isfinite(x) else None
