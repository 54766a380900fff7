"""The pair's text-encoder parts: our own engine adds both to the encoders' weights, because text encoders have no steps.

diffusers' loaders would wrap the layers, and they read only LoRA.  This reads every type, and restores the weights exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.fit import refuse_other_shapes, weigh_deltas
from ..engine.memory import MemoryBudget, estimate_sampling_bytes
from ..engine.session import Placed, make_actor
from ..engine.site import Actor, Site
from ..errors import KLoraError, LoraFileError, format_count, join_errors
from ..lora.build import build_delta
from ..lora.deltas import Delta, overflows
from ..lora.file import LoraFile
from ..lora.keys import parse_key
from ..rule.pairing import Pair, Unit
from ..rule.selectors import BOTH
from ..settings import Settings
from .model import (
    IMAGE_PIXELS,
    find_packing,
    list_layers,
    name_model,
    read_weight,
    refuse_hooks,
    replace_streamed_norm,
    unwrap,
)

ROLES = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5 = "encoder.block."  # in files the T5 is always the third encoder; Flux has it as the second, SD3 as the third


def read_text_deltas(file: LoraFile) -> dict[tuple[str, str], Delta]:
    """(role, layer) → Delta.  Raises LoraFileError if a module cannot be used."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for raw, tensor in file.text.items():
        key = parse_key(raw)
        if key is not None:
            parts.setdefault((key.role, key.layer), {})[key.part] = tensor
    errors: list[KLoraError] = []
    deltas: dict[tuple[str, str], Delta] = {}
    for (role, layer), tensors in parts.items():
        try:
            deltas[role, layer] = build_delta(layer, tensors)
            if overflows(deltas[role, layer]):
                raise LoraFileError(f"the update of {role}.{layer} is too large for fp32")
        except KLoraError as e:
            errors.append(type(e)(f"{file.name!r} cannot be used: {e.message}"))
    if errors:
        raise join_errors(errors[:3])
    return deltas


def pair_text_layers(pair: Pair, weights: tuple[float, float]) -> dict[str, list[Unit]]:
    """Role → units.  A text-encoder part with weight 0 is left out."""
    files = zip((pair.content, pair.style), weights, ("content", "style"))
    found = []
    for file, weight, role in files:
        try:
            found.append(read_text_deltas(file) if weight else {})
        except KLoraError as e:
            raise e.blame(role) from None
    units: dict[str, list[Unit]] = {}
    for role, layer in dict.fromkeys([*found[0], *found[1]]):
        units.setdefault(role, []).append(Unit(layer, *(each.get((role, layer)) for each in found)))
    return units


def find_encoder_sites(encoder: nn.Module) -> dict[str, Site]:
    """Every layer of a text encoder that has a weight, by its path."""
    weighted = {path: m for path, m in list_layers(unwrap(encoder)) if path and getattr(m, "weight", None) is not None}
    return {path: replace_streamed_norm(Site(m, None, read_weight, find_packing(m))) for path, m in weighted.items()}


def find_encoder(pipe: Any, role: str, layer: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, encoder) of the pipeline's text encoder that this layer belongs to; nothing if the pipeline has none."""
    names = reversed(ROLES) if layer.startswith(T5) else [role]
    for name in names:
        encoder = getattr(pipe, name, None)
        if isinstance(encoder, nn.Module) and (not layer.startswith(T5) or hasattr(unwrap(encoder), "encoder")):
            yield name, encoder
            return


def make_text_actors(pipe: Any, pair: Pair, settings: Settings, device: torch.device) -> tuple[list[Actor], list[str]]:
    """Actors for the text parts on the pipeline's encoders, and the names of the layers that the encoders do not have.

    Raises PairError if shapes differ, HostError if an encoder is compiled and its weights must not be written.
    """
    weights = settings.weights[0][0], settings.weights[1][0]
    engine = "bypass" if settings.engine == "bypass" else "auto"
    budget = MemoryBudget.on(device, estimate_sampling_bytes(IMAGE_PIXELS))
    actors: list[Actor] = []
    missing: list[str] = []
    by_encoder: dict[str, dict[str, Site]] = {}
    for role, units in pair_text_layers(pair, weights).items():
        for unit in units:
            found = next(find_encoder(pipe, role, unit.name), None)
            if found and found[0] not in by_encoder:
                by_encoder[found[0]] = find_encoder_sites(found[1])
            sites = by_encoder[found[0]] if found else {}
            if found is None or unit.name not in sites:
                missing.append(f"{role}.{unit.name}")
                continue
            refuse_other_shapes([unit], sites, (pair.content.name, pair.style.name), name_model(pipe))
            actor = make_actor(Placed(None, BOTH, sites[unit.name], weigh_deltas(unit, weights)), engine, device, budget)
            refuse_hooks([actor], found[1])
            actors.append(actor)
    return actors, missing


def describe_missing(missing: list[str], where: str) -> list[str]:
    """A list with one sentence about the missing layers; empty if none is missing."""
    return [f"{format_count(len(missing), 'layer')} of the pair not in {where}, {missing[0]} among them"] if missing else []
