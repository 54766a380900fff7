"""Methods that change the updates themselves: each a pure function (what acts on a layer, its facts, settings) → what acts
there instead.

A combiner also gets the user's weights, because methods use them in different ways: ``np`` ignores them, ``average`` scales
them, ``ties`` applies them to the updates before it compares these.  Combiners are called for the layers for which a method
decides.  Layers of one LoRA only, and layers that ``layers`` excludes, do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.combined import Elected, Projected
from ..lora.factors import find_leading
from ..numerics import exact_math
from ..settings import Settings
from .pairing import Pair, Unit
from .selectors import CONTENT, Facts, select
from .watch import Watch, ignore

# Measured on a style of the toy world that was trained as full differences, as LoHa and as LoKr: 95 % of its energy lie in
# 9, 11 and 37 % of its directions, and the next 4 % take half as many again or more.  With μ = 0.5 images are no better
# beyond it (4 subjects, 10 seeds; "both": 16 % at 0.8, 19 % at 0.9, 20 % at 0.95, 21 % at 0.99); with μ = 4 what is beyond
# costs the subject (11 % at 0.95, 7 % at 0.99).
SHARE = 0.95


class Acting(NamedTuple):
    """The modules of one layer, and how strongly each acts where the mask lets it."""

    unit: Unit
    weights: tuple[float, float]  # content, style


Combiner = Callable[[Acting, Facts, Settings], Acting]


def np(acting: Acting, facts: Facts, settings: Settings) -> Acting:
    """NP-LoRA (arXiv 2511.11051): ΔW_s + ΔW_c·(I − μ/(1+μ)·QQᵀ), Q the row space of ΔW_s.

    Only the content's down factor changes.  A style of full row space (LoHa, LoKr, full) counts with the leading directions
    that hold SHARE of its energy.  DoRA as content is exact: what it adds to the weight is projected.  DoRA as style is
    refused (``plan.refuse_unfit``): its row space is the model's own.
    """
    unit = acting.unit
    assert unit.content is not None and unit.style is not None
    known = facts.scores.directions[0]
    low_rank = unit.style.factors() is not None
    directions = known if known is not None else unit.style if low_rank else find_leading(unit.style, SHARE)
    projected = Projected(unit.content, directions, settings.mu / (1 + settings.mu))
    return Acting(Unit(unit.name, projected, unit.style), acting.weights)


def find_style_directions(pair: Pair, device: torch.device, watch: Watch = ignore) -> tuple[Tensor | None, ...]:
    """What ``np`` needs of shared layers in which the style has no two factors; seconds for a layer of 3000 columns."""

    def find(unit: Unit) -> Tensor | None:
        style = unit.style
        if unit.content is None or style is None or style.asks_base or style.factors() is not None:
            return None
        watch()
        return find_leading(style, SHARE, device)

    with exact_math(device):
        return tuple(map(find, pair.units))


def average(acting: Acting, facts: Facts, settings: Settings) -> Acting:
    """p·ΔW_c + (1−p)·ΔW_s, p the share of the schedule's steps in which K-LoRA gives the layer to content: K-LoRA averaged
    over time, an ablation.  Exact for every type: what a module adds to the weight is scaled, whatever it is."""
    moments = torch.arange(facts.steps, dtype=torch.float64) / facts.steps
    p = float((select("klora", facts, moments) == CONTENT).double().mean())
    content, style = acting.weights
    return Acting(acting.unit, (p * content, (1 - p) * style))


def ties(acting: Acting, facts: Facts, settings: Settings) -> Acting:
    """TIES-Merging (arXiv 2306.01708) of the two weighted updates, in each layer: trim, elect signs, mean of those that
    agree.  Exact for every type, as what a module adds to the weight is taken."""
    unit = acting.unit
    assert unit.content is not None and unit.style is not None
    return Acting(Unit(unit.name, Elected(unit.content, unit.style, acting.weights, settings.density), None), (1.0, 1.0))


COMBINERS: Mapping[str, Combiner] = {"np": np, "average": average, "ties": ties}


def combine_units(
    method: str, units: Sequence[Unit], facts: Facts, settings: Settings, weights: tuple[float, float]
) -> list[Acting]:
    """What acts on each unit.  ``weights``: the user's, of content and style."""
    plain = [Acting(unit, weights) for unit in units]
    if method not in COMBINERS:
        return plain
    decided = facts.decided.tolist()
    return [
        COMBINERS[method](acting, facts.about(i), settings) if decided[i] else acting for i, acting in enumerate(plain)
    ]
