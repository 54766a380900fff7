"""Whether a pair fits the loaded model, and where each of its units acts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..errors import LONGEST_NAME, MAX_LISTED, PairError, shorten
from ..lora.keys import list_members
from ..lora.rows import cut_rows
from ..rule.combiners import Acting
from ..rule.pairing import Pair, Unit, flatten_shape, format_sizes, sizes_agree
from ..rule.plan import Plan
from ..rule.scoring import Weights
from .session import Placed
from .site import Site, SiteDeltas, WeightedDelta

Sites = Mapping[str, Site]
# layers that take the picture; variants of a model have them take further channels behind its own (mask, control picture)
FIRST_LAYERS = ("conv_in", "x_embedder", "pos_embed.proj", "patch_embedding")
LATENT = 4  # channels of the picture in every UNet of Stable Diffusion


def place_units(
    plan: Plan, pair: Pair, sites: Sites, weights: tuple[float, float], checkpoint: str
) -> tuple[list[Placed], list[str]]:
    """Every unit of the pair with its site, and the names of the units that the model does not have.

    Args: weights: the user's denoiser weights of content and style.
    Raises PairError where shapes differ, or no layer that both LoRAs touch is in the model (where they share none: no
    layer of one of them).
    """
    refuse_misfit(pair, sites, checkpoint)
    rows = [*range(len(plan.units)), *[None] * len(pair.added)]
    placed, missing = [], []
    acting = [*plan.acting(weights), *(Acting(unit, weights) for unit in pair.added)]
    for row, (unit, strengths) in zip(rows, acting):
        found = find_seats(unit, sites)
        if not found:
            missing.append(unit.name)
        mask = plan.added_mask(unit)
        placed += [Placed(row, mask, site, weigh_deltas(part, strengths), part.name) for part, site in found]
    return placed, missing


def refuse_misfit(pair: Pair, sites: Sites, checkpoint: str) -> None:
    """Raise the PairError of ``place_units``."""
    units = (*pair.units, *pair.added)
    refuse_other_shapes(units, sites, (pair.content.name, pair.style.name), checkpoint)
    if pair.shared:
        if not any(unit.shared and find_seats(unit, sites) for unit in units):
            example = shorten(pair.units[0].name, LONGEST_NAME)
            raise PairError(f"none of the layers that both LoRAs touch is in {checkpoint!r}, {example} is not")
        return
    for role, file in (("content", pair.content), ("style", pair.style)):
        own = [unit for unit in units if getattr(unit, role) is not None]
        if not any(find_seats(unit, sites) for unit in own):
            example = shorten(own[0].name, LONGEST_NAME)
            said = f"none of the {len(own)} layers of {file.name!r} is in {checkpoint!r}, {example} is not"
            raise PairError(said, role)


def weigh_deltas(unit: Unit, weights: tuple[float, float]) -> SiteDeltas:
    return SiteDeltas(*(WeightedDelta(d, w) if d is not None else None for d, w in zip((unit.content, unit.style), weights)))


def find_seats(unit: Unit, sites: Sites) -> list[tuple[Unit, Site]]:
    """The sites on which a unit acts: its own, or the members' if the model has this fused layer split."""
    if unit.name in sites:
        return [(unit, sites[unit.name])]
    names = find_split_members(unit, sites)
    edges = [0, *accumulate(sites[name].shape[0] for name in names)]
    parts = [
        Unit(name, cut_rows(unit.content, first, last), cut_rows(unit.style, first, last))
        for name, (first, last) in zip(names, pairwise(edges))
    ]
    return [(part, sites[part.name]) for part in parts if part.content is not None or part.style is not None]


def find_split_members(unit: Unit, sites: Sites) -> tuple[str, ...]:
    """The members of a fused unit where the model has all of them and not the fused layer; else ()."""
    names = list_members(unit.name)
    return names if unit.name not in sites and all(name in sites for name in names) else ()


def find_shape(unit: Unit, sites: Sites) -> tuple[int, ...] | None:
    """Shape of the weight that the unit is for, members stacked; None where the model does not have it."""
    if unit.name in sites:
        return sites[unit.name].shape
    shapes = [sites[name].shape for name in find_split_members(unit, sites)]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes else None


def make_weight_reader(sites: Sites) -> Weights:
    """A reader of the model's weights, which scoring needs for OFT, BOFT and IA3."""

    def read(unit: Unit, device: torch.device) -> Tensor | None:
        names = [unit.name] if unit.name in sites else find_split_members(unit, sites)
        parts = [sites[name].read_weight(device).reshape(sites[name].shape[0], -1) for name in names]
        return torch.cat(parts) if parts else None

    return read


def refuse_other_shapes(units: Sequence[Unit], sites: Sites, names: tuple[str, str], checkpoint: str) -> None:
    there = [(unit, find_shape(unit, sites)) for unit in units]
    bad = [(unit, shape) for unit, shape in there if shape is not None and not fits(unit, shape)]
    if not bad:
        return
    both = [(unit.name, format_sizes(unit.shape), format_sizes(shape)) for unit, shape in bad[:MAX_LISTED]]
    told = [f"{name} is {ours} in the LoRAs, {theirs} in the model" for name, ours, theirs in both]
    more = f", and {len(bad) - MAX_LISTED} layers more" if len(bad) > MAX_LISTED else ""
    raise PairError(f"{names[0]!r} and {names[1]!r} are not made for the model of {checkpoint!r}: {'; '.join(told)}{more}")


def fits(unit: Unit, theirs: tuple[int, ...]) -> bool:
    """Same rows and columns as the model's layer; a bias alone has rows only; a first layer may be wider in the model."""
    if len(unit.shape) == 1:
        return unit.shape[0] == theirs[0]
    if not all(delta is None or delta.accepts(theirs) for delta in (unit.content, unit.style)):
        return False
    return sizes_agree(flatten_shape(unit.shape), flatten_shape(theirs)) or is_widened(unit, theirs)


def is_widened(unit: Unit, theirs: tuple[int, ...]) -> bool:
    """Whether the model's layer is the unit's layer with additional input channels, which get no update.

    This is so for the first layers of inpainting, InstructPix2Pix, depth, Flux Fill and Flux Control.  Rows and kernel must
    be equal.  A LoRA for another model differs in these or in its other layers.
    """
    if unit.name not in FIRST_LAYERS or unit.shape[0] != theirs[0]:
        return False
    if len(unit.shape) == 2:  # the kernel is unknown, or there is none
        channels, rest = divmod(unit.shape[1], math.prod(theirs[2:]))
        same_kernel = rest == 0
    else:
        channels, same_kernel = unit.shape[1], unit.shape[2:] == theirs[2:]
    return same_kernel and channels < theirs[1] and (unit.name != "conv_in" or channels == LATENT)
