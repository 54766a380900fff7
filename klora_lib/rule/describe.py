"""A plan as JSON: what the command ``plan`` prints and the web API answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .plan import Plan, format_row


def describe_plan(plan: Plan, steps: int, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The plan as JSON: gamma, steps, and for each layer its values and one letter per step.

    The values are K and four sums, or two energies for a method that uses energies.  Also the notes, if there are any.
    """
    s, table = plan.facts.scores, plan.table(steps)
    sums = {
        "content_topk_sum": s.content_topk, "style_topk_sum": s.style_topk,
        "content_abs_sum": s.content_abs, "style_abs_sum": s.style_abs,
    }  # fmt: skip
    columns = {"content_energy": s.content_topk, "style_energy": s.style_topk} if s.squared else sums
    layers = [
        {
            "name": unit.name,
            "content_rank": unit.content.rank if unit.content else 0,
            "style_rank": unit.style.rank if unit.style else 0,
            **({} if s.squared else {"k": s.k[i]}),
            **{name: float(column[i]) for name, column in columns.items()},
            "selection": format_row(table[i]),
        }
        for i, unit in enumerate(plan.units)
    ]
    return {"gamma": plan.gamma, "steps": steps, "layers": layers} | ({"notes": list(notes)} if notes else {})
