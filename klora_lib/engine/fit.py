"""Does a pair fit the loaded model, and where does each of its units act?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..errors import MAX_LISTED, PairError
from ..lora.keys import members
from ..lora.rows import rows_of
from ..rule.pairing import Pair, Unit, agree, flat, sizes_text
from ..rule.plan import Plan
from ..rule.scoring import Weights
from ..rule.selectors import CONTENT, STYLE
from .session import Placed
from .site import Load, Loads, Site

Sites = Mapping[str, Site]
# layers that take the picture; variants of a model have them take further channels behind its own (mask, control picture)
FIRST_LAYERS = ("conv_in", "x_embedder", "pos_embed.proj", "patch_embedding")
LATENT = 4  # channels of the picture in every UNet of Stable Diffusion


def place(
    plan: Plan, pair: Pair, sites: Sites, weights: tuple[float, float], checkpoint: str
) -> tuple[list[Placed], list[str]]:
    """Every unit of the pair on its site, and the names of those the model does not have.

    Args: weights: the user's denoiser weights of content and style.
    Raises PairError where shapes differ, or no layer that both LoRAs touch is in the model (where they share none: no
    layer of one of them).
    """
    refuse_misfit(pair, sites, checkpoint)
    rows = [*range(len(plan.units)), *[None] * len(pair.added)]
    placed, missing = [], []
    for row, unit in zip(rows, (*plan.units, *pair.added)):
        found = seats(unit, sites)
        if not found:
            missing.append(unit.name)
        placed += [Placed(row, added_mask(plan, unit), site, loads(part, weights), part.name) for part, site in found]
    return placed, missing


def refuse_misfit(pair: Pair, sites: Sites, checkpoint: str) -> None:
    """Raise the PairError of ``place``."""
    units = (*pair.units, *pair.added)
    refuse_other_shapes(units, sites, (pair.content.name, pair.style.name), checkpoint)
    if pair.shared:
        if not any(unit.shared and seats(unit, sites) for unit in units):
            raise PairError(f"none of the layers that both LoRAs touch is in {checkpoint!r}, {pair.units[0].name} is not")
        return
    for role, file in (("content", pair.content), ("style", pair.style)):
        own = [unit for unit in units if getattr(unit, role) is not None]
        if not any(seats(unit, sites) for unit in own):
            said = f"none of the {len(own)} layers of {file.name!r} is in {checkpoint!r}, {own[0].name} is not"
            raise PairError(said, role)


def loads(unit: Unit, weights: tuple[float, float]) -> Loads:
    return Loads(*(Load(d, w) if d is not None else None for d, w in zip((unit.content, unit.style), weights)))


def seats(unit: Unit, sites: Sites) -> list[tuple[Unit, Site]]:
    """Where a unit acts: on its site; or, where the model has a fused layer split, each member's rows on the member's."""
    if unit.name in sites:
        return [(unit, sites[unit.name])]
    names = split_in_the_model(unit, sites)
    edges = [0, *accumulate(sites[name].shape[0] for name in names)]
    parts = [
        Unit(name, rows_of(unit.content, first, last), rows_of(unit.style, first, last))
        for name, (first, last) in zip(names, pairwise(edges))
    ]
    return [(part, sites[part.name]) for part in parts if part.content is not None or part.style is not None]


def split_in_the_model(unit: Unit, sites: Sites) -> tuple[str, ...]:
    """The members of a fused unit where the model has all of them and not the fused layer; else ()."""
    names = members(unit.name)
    return names if unit.name not in sites and all(name in sites for name in names) else ()


def shape_in_the_model(unit: Unit, sites: Sites) -> tuple[int, ...] | None:
    """Shape of the weight that the unit is for, members stacked; None where the model does not have it."""
    if unit.name in sites:
        return sites[unit.name].shape
    shapes = [sites[name].shape for name in split_in_the_model(unit, sites)]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes else None


def weights_of(sites: Sites) -> Weights:
    """The reader of the model's weights that scoring an OFT, a BOFT or an IA3 needs."""

    def read(unit: Unit, device: torch.device) -> Tensor | None:
        names = [unit.name] if unit.name in sites else split_in_the_model(unit, sites)
        parts = [sites[name].numbers(device).reshape(sites[name].shape[0], -1) for name in names]
        return torch.cat(parts) if parts else None

    return read


def added_mask(plan: Plan, unit: Unit) -> int:
    """Norms and biases are not chosen: both LoRAs' are added, or the one LoRA's that the method leaves."""
    if plan.layers == "attention-only":
        return 0
    return {"content": CONTENT, "style": STYLE}.get(plan.method, CONTENT | STYLE)


def refuse_other_shapes(units: Sequence[Unit], sites: Sites, names: tuple[str, str], checkpoint: str) -> None:
    there = [(unit, shape_in_the_model(unit, sites)) for unit in units]
    bad = [(unit, shape) for unit, shape in there if shape is not None and not fits(unit, shape)]
    if not bad:
        return
    both = [(unit.name, sizes_text(unit.shape), sizes_text(shape)) for unit, shape in bad[:MAX_LISTED]]
    told = [f"{name} is {ours} in the LoRAs, {theirs} in the model" for name, ours, theirs in both]
    more = f", and {len(bad) - MAX_LISTED} layers more" if len(bad) > MAX_LISTED else ""
    raise PairError(f"{names[0]!r} and {names[1]!r} are not made for the model of {checkpoint!r}: {'; '.join(told)}{more}")


def fits(unit: Unit, theirs: tuple[int, ...]) -> bool:
    """Same rows and columns as the model's layer; a bias alone has rows only; a first layer may be wider in the model."""
    if len(unit.shape) == 1:
        return unit.shape[0] == theirs[0]
    if not all(delta is None or delta.accepts(theirs) for delta in (unit.content, unit.style)):
        return False
    return agree(flat(unit.shape), flat(theirs)) or widened(unit, theirs)


def widened(unit: Unit, theirs: tuple[int, ...]) -> bool:
    """Whether the model's layer is the unit's, with further input channels behind it: these get no update.

    So are the first layers of inpainting, InstructPix2Pix, depth, Flux Fill and Flux Control. Only a first layer can be,
    of as many rows and of the same kernel. A LoRA for another model differs there or in its other layers.
    """
    if unit.name not in FIRST_LAYERS or unit.shape[0] != theirs[0]:
        return False
    if len(unit.shape) == 2:  # the kernel is unknown, or there is none
        channels, rest = divmod(unit.shape[1], math.prod(theirs[2:]))
        same_kernel = rest == 0
    else:
        channels, same_kernel = unit.shape[1], unit.shape[2:] == theirs[2:]
    return same_kernel and channels < theirs[1] and (unit.name != "conv_in" or channels == LATENT)
