"""The pair's text-encoder parts: added to the encoders' weights by our own engine, as they know no steps.

diffusers' loaders would wrap the layers and read LoRA alone; this reads every type, and gives the weights back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.fit import loads, refuse_other_shapes
from ..engine.memory import MemoryBudget, sampling_bytes
from ..engine.session import Placed, make_actor
from ..engine.site import Actor, Site
from ..errors import KLoraError, LoraFileError, all_offenders, count
from ..lora.build import build_delta
from ..lora.deltas import Delta, overflows
from ..lora.file import LoraFile
from ..lora.keys import parse_key
from ..rule.pairing import Pair, Unit
from ..rule.selectors import BOTH
from ..settings import Settings
from .model import IMAGE, bare, layers, model_name, numbers, offloaded_norm, packing, refuse_hooks

ROLES = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5 = "encoder.block."  # Flux has its T5 second, SD3 third: files call it the third


def text_deltas(file: LoraFile) -> dict[tuple[str, str], Delta]:
    """(role, layer) → Delta.  Raises LoraFileError where a module cannot be used."""
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
        raise all_offenders(errors[:3])
    return deltas


def both_parts(pair: Pair, weights: tuple[float, float]) -> dict[str, list[Unit]]:
    """Role → units.  A part of weight 0 is left out."""
    files = zip((pair.content, pair.style), weights, ("content", "style"))
    found = []
    for file, weight, role in files:
        try:
            found.append(text_deltas(file) if weight else {})
        except KLoraError as e:
            raise e.about(role) from None
    units: dict[str, list[Unit]] = {}
    for role, layer in dict.fromkeys([*found[0], *found[1]]):
        units.setdefault(role, []).append(Unit(layer, *(each.get((role, layer)) for each in found)))
    return units


def encoder_sites(encoder: nn.Module) -> dict[str, Site]:
    """Every layer of a text encoder by its own path."""
    weighted = {path: m for path, m in layers(bare(encoder)) if path and getattr(m, "weight", None) is not None}
    return {path: offloaded_norm(Site(m, None, numbers, packing(m))) for path, m in weighted.items()}


def encoder_of(pipe: Any, role: str, layer: str) -> Iterator[tuple[str, nn.Module]]:
    """The pipeline's encoder of this role that has a layer of that name, if any."""
    names = reversed(ROLES) if layer.startswith(T5) else [role]
    for name in names:
        encoder = getattr(pipe, name, None)
        if isinstance(encoder, nn.Module) and (not layer.startswith(T5) or hasattr(bare(encoder), "encoder")):
            yield name, encoder
            return


def text_actors(pipe: Any, pair: Pair, settings: Settings, device: torch.device) -> tuple[list[Actor], list[str]]:
    """The text parts on the pipeline's encoders, ready to act, and the names of what these do not have.

    Raises PairError where shapes differ, HostError where an encoder is compiled and must not be written.
    """
    weights = settings.weights[0][0], settings.weights[1][0]
    engine, budget = "bypass" if settings.engine == "bypass" else "auto", MemoryBudget.on(device, sampling_bytes(IMAGE))
    actors: list[Actor] = []
    missing: list[str] = []
    known: dict[str, dict[str, Site]] = {}
    for role, units in both_parts(pair, weights).items():
        for unit in units:
            home = next(encoder_of(pipe, role, unit.name), None)
            if home and home[0] not in known:
                known[home[0]] = encoder_sites(home[1])
            sites = known[home[0]] if home else {}
            if home is None or unit.name not in sites:
                missing.append(f"{role}.{unit.name}")
                continue
            refuse_other_shapes([unit], sites, (pair.content.name, pair.style.name), model_name(pipe))
            actor = make_actor(Placed(None, BOTH, sites[unit.name], loads(unit, weights)), engine, device, budget)
            refuse_hooks([actor], home[1])
            actors.append(actor)
    return actors, missing


def describe_missing(missing: list[str], where: str) -> list[str]:
    """One sentence about layers that are not there, or none."""
    return [f"{count(len(missing), 'layer')} of the pair not in {where}, {missing[0]} among them"] if missing else []
