"""A pair explained: how strong the two are, how alike, and what of each acts; per block, in all, and in one sentence.

Exact, from small matrices of the factors: no ΔW is formed where there are any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..lora.deltas import Delta, Dora
from ..lora.factors import compute_gram, find_row_space, normalise
from ..lora.keys import make_natural_order
from ..numerics import exact_math
from .energies import compute_energies
from .pairing import Unit
from .plan import Plan
from .scoring import Scores
from .selectors import BOTH, CONTENT, STYLE
from .watch import Watch, ignore

BLOCK = re.compile(r"mid_block|[a-z_]+\.\d+|[^.]+")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Closeness:
    """How alike the two are.  Columns over units, float64; 0 where a unit has one of them alone.

    inner: Σ ΔW_c·ΔW_s.  inside: the energy of ΔW_c in the row space of ΔW_s, and chance: what it would be of a ΔW_c of
    random rows, rank/columns of its energy; NaN where the style has no two factors, and so a full row space or nearly.
    """

    inner: Tensor
    inside: Tensor
    chance: Tensor


@dataclass(frozen=True)
class Part:
    """A block, or all of the pair.  Energies are ‖ΔW‖², shares from 0 to 1; None where there is nothing to tell.

    content_steps … none_steps: the share of layers × steps in which one, both or none act.  content_acting, style_acting:
    the share of its own energy with which a LoRA acts, over all steps.  cosine, content_in_style, chance: of shared layers.
    """

    name: str
    layers: int
    content_alone: int
    style_alone: int
    never_switch: int
    content_energy: float
    style_energy: float
    content_steps: float
    style_steps: float
    both_steps: float
    none_steps: float
    content_acting: float | None
    style_acting: float | None
    cosine: float | None
    content_in_style: float | None
    chance: float | None


@dataclass(frozen=True)
class Explained:
    sentence: str
    total: Part
    blocks: tuple[Part, ...]

    def as_json(self) -> dict[str, Any]:
        return {"sentence": self.sentence, "total": asdict(self.total), "blocks": [asdict(part) for part in self.blocks]}


def explain(plan: Plan, steps: int, energies: Scores | None = None, closeness: Closeness | None = None) -> Explained:
    """``plan``, of a pair that is not ``relative``, over ``steps`` steps of txt2img.

    Args: energies, closeness: of the plan's units, if they are known already.
    Raises LoraFileError if an update has no finite values in fp32.
    """
    known = energies or compute_energies(plan.units, CPU)
    close, table = closeness or measure_closeness(plan.units), plan.table(steps)
    columns = torch.stack([known.content_topk, known.style_topk, close.inner, close.inside, close.chance])

    def part(name: str, rows: Sequence[int]) -> Part:
        return make_part(name, [plan.units[i] for i in rows], table[rows], columns[:, rows])

    blocks: dict[str, list[int]] = {}
    for i, unit in enumerate(plan.units):
        blocks.setdefault(find_block(unit.name), []).append(i)
    total = part("all", range(len(plan.units)))
    parts = tuple(part(name, blocks[name]) for name in sorted(blocks, key=make_natural_order))
    return Explained(write_sentence(plan, table, total), total, parts)


def tell(plan: Plan, table: Tensor, energies: Scores, closeness: Closeness) -> str:
    """The sentence of ``explain`` alone, for a ``table`` of the plan: masks, uint8 [units, calls]."""
    parts = closeness.inner, closeness.inside, closeness.chance
    columns = torch.stack([energies.content_topk, energies.style_topk, *parts])
    return write_sentence(plan, table, make_part("all", plan.units, table, columns))


def make_part(name: str, units: Sequence[Unit], table: Tensor, columns: Tensor) -> Part:
    """Args: table: uint8 [units, steps].  columns: float64 [5, units], both energies and what ``Closeness`` has."""
    content, style, inner, inside, chance = columns
    shared = torch.tensor([unit.shared for unit in units])
    seen = shared & ~inside.isnan()
    share = {mask: float((table == mask).double().mean()) for mask in range(4)}
    acting = [(energy * ((table & bit) > 0).double().mean(1)).sum() for bit, energy in ((CONTENT, content), (STYLE, style))]
    return Part(
        name,
        len(units),
        sum(unit.style is None for unit in units),
        sum(unit.content is None for unit in units),
        int((table == table[:, :1]).all(1).sum()),
        float(content.sum()),
        float(style.sum()),
        share[CONTENT],
        share[STYLE],
        share[BOTH],
        share[0],
        divide(acting[0], content.sum()),
        divide(acting[1], style.sum()),
        divide(inner[shared].sum(), (content[shared].sum() * style[shared].sum()).sqrt()),
        divide(inside[seen].sum(), content[seen].sum()),
        divide(chance[seen].sum(), content[seen].sum()),
    )


def divide(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if float(whole) > 0 else None


def find_block(layer: str) -> str:
    """``up_blocks.1``, ``mid_block``, ``single_transformer_blocks.7``; of a layer outside of blocks its first word."""
    found = BLOCK.match(layer)
    return found[0] if found else layer


# --- how alike ---


def measure_closeness(units: Sequence[Unit], watch: Watch = ignore) -> Closeness:
    rows = []
    with exact_math(CPU):
        for unit in units:
            watch()
            rows.append(compare(unit.content, unit.style) if unit.content and unit.style else (0.0, 0.0, 0.0))
    return Closeness(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1))


def compare(content: Delta, style: Delta) -> tuple[float, float, float]:
    """(Σ ΔW_c·ΔW_s, energy of ΔW_c in the row space of ΔW_s, what chance would give)."""
    content, style = take_scored(content), take_scored(style)
    one, two = content.factors(), style.factors()
    if one is None or two is None:
        (x, a), (y, b) = normalise(content.dense()), normalise(style.dense())
        inner, energy = float((x * y).sum(1).double().sum()) * a * b, x.square().sum(1).double().sum() * a**2
        if two is None:
            return inner, math.nan, math.nan
        q = find_row_space(*two[:2])
        return inner, float((x @ q).square().sum(1).double().sum()) * a**2, float(energy) * q.shape[1] / q.shape[0]
    (up, a), (down, b), (other_up, c), (other_down, d) = (normalise(t) for t in (*one[:2], *two[:2]))
    size, other = one[2] * a * b, two[2] * c * d
    inner = float((compute_gram(up.T, other_up.T) * compute_gram(down, other_down)).sum()) * size * other
    q, weights = find_row_space(other_up, other_down), compute_gram(up.T)  # q: [columns, k]
    inside, energy = (weights * compute_gram(down @ q)).sum(), (weights * compute_gram(down)).sum()
    return inner, float(inside) * size**2, float(energy) * size**2 * q.shape[1] / q.shape[0]


def take_scored(delta: Delta) -> Delta:
    """What the rule looks at: of a DoRA its low-rank product."""
    return delta.inner if isinstance(delta, Dora) else delta


# --- in words ---


def write_sentence(plan: Plan, table: Tensor, total: Part) -> str:
    """What a user should know first."""
    decided = table[plan.facts.decided]
    said = [describe_turns(decided) if len(decided) else "they have no layer in common, so each acts on its own layers"]
    if total.content_in_style is not None and total.chance is not None:
        chance = f"{100 * total.chance:.0f} % would be by chance"
        said.append(f"{100 * total.content_in_style:.0f} % of the content lies in the style's directions, where {chance}")
    return "; ".join(said)


def describe_turns(table: Tensor) -> str:
    """Of the layers between which the rule decides, [layers, steps]: who has most of them, and from which step on."""
    steps = table.shape[1]
    names = {CONTENT: "content", STYLE: "style", BOTH: "both together", 0: "neither"}
    most = [int(column.bincount(minlength=4).argmax()) for column in table.T.long()]
    turns = [(t, mask) for t, mask in enumerate(most) if t == 0 or mask != most[t - 1]]
    first = names[turns[0][1]]
    if len(turns) == 1:
        verb = "act" if turns[0][1] == BOTH else "acts"
        return f"{first} {verb} in most layers at every step"
    if len(turns) > 4:
        return f"{first} begins, and the two take turns in most layers, {len(turns) - 1} times in {steps} steps"
    then = [f"{names[mask]} takes over at step {t + 1}" for t, mask in turns[1:]]
    return f"{first} begins in most layers, and {', '.join(then)} of {steps}"


HEAD = ("block", "layers", "energy c", "energy s", "steps c", "steps s", "steps both", "acts c", "acts s", "cosine",
        "c in s", "chance", "never switch", "only c", "only s")  # fmt: skip


def format_report(found: Explained) -> str:
    """The sentence, and a table of the blocks; c is content, s is style."""
    rows = [HEAD, *(format_cells(part) for part in (*found.blocks, found.total))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]
    return "\n".join([f"{found.sentence[0].upper()}{found.sentence[1:]}.", "", *lines]) + "\n"


def format_cells(part: Part) -> tuple[str, ...]:
    shares = (part.content_steps, part.style_steps, part.both_steps, part.content_acting, part.style_acting)
    return (
        part.name, str(part.layers), f"{part.content_energy:.3g}", f"{part.style_energy:.3g}", *map(format_percent, shares),
        "-" if part.cosine is None else f"{part.cosine:+.3f}",
        format_percent(part.content_in_style), format_percent(part.chance), str(part.never_switch),
        str(part.content_alone), str(part.style_alone),
    )  # fmt: skip


def format_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
