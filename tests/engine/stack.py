"""A small stack of modules under canonical names, a random pair for it, and the same weights by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from klora_lib.engine.fit import place_units
from klora_lib.engine.session import Session
from klora_lib.engine.site import Site
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

from .cases import CPU, make_layer, rand

BLOCK = "down_blocks.0.attentions.0"
NAMES = {
    "conv_in": "conv 3×3",
    f"{BLOCK}.proj_in": "conv 1×1, linear update",
    f"{BLOCK}.transformer_blocks.0.attn1.to_q": "linear without bias",
    f"{BLOCK}.transformer_blocks.0.attn1.to_k": "linear without bias",
    f"{BLOCK}.transformer_blocks.0.attn1.to_out.0": "linear",
    f"{BLOCK}.transformer_blocks.0.ff.net.2": "linear",
}
NORM = f"{BLOCK}.transformer_blocks.0.norm1"
SIZES = (0.20, 0.31, 0.24, 0.36, 0.28)  # close enough that every shared layer switches, apart enough that not all at once
CONTENT_ONLY = f"{BLOCK}.transformer_blocks.0.attn1.to_k"
STYLE_ONLY = "conv_in"


def make_stack(dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    stack = {name: make_layer(layer, dtype, seed=3 * i) for i, (name, layer) in enumerate(NAMES.items())}
    stack[NORM] = nn.LayerNorm(6).to(dtype).requires_grad_(False)
    return stack


def make_sites(stack: Mapping[str, nn.Module]) -> dict[str, Site]:
    return {name: Site(module) for name, module in stack.items()}


def make_file(name: str, seed: int, layers: Iterable[str], norm: bool = True) -> LoraFile:
    """Low-rank modules of uneven strength, one LoHa among them, biases on to_out.0, and a norm."""
    tensors: dict[str, Tensor] = {}
    stack = make_stack()
    for i, layer in enumerate(layers):
        out, fan_in, *window = stack[layer].weight.shape  # type: ignore[union-attr]
        key, size = f"unet.{layer}", SIZES[(seed + 2 * i) % len(SIZES)]
        if layer.endswith("ff.net.2"):
            tensors |= {f"{key}.hada_w{n}_a": rand(out, 2, seed=seed + i + n, size=0.5) for n in (1, 2)}
            tensors |= {f"{key}.hada_w{n}_b": rand(2, fan_in, seed=seed + i - n, size=size) for n in (1, 2)}
            continue
        tensors[f"{key}.lora_up.weight"] = rand(out, 2, *(1 for _ in window), seed=seed + i, size=size)
        tensors[f"{key}.lora_down.weight"] = rand(2, fan_in, *window, seed=seed - i)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
        if layer.endswith("to_out.0"):
            tensors[f"{key}.diff_b"] = rand(out, seed=seed, size=0.1)
    if norm:
        tensors |= {f"unet.{NORM}.w_norm": rand(6, seed=seed), f"unet.{NORM}.b_norm": rand(6, seed=seed + 1)}
    return lora_file(tensors, name, name)


@dataclass(frozen=True)
class Prepared:
    stack: dict[str, nn.Module]
    pair: Pair
    plan: Plan
    session: Session


def prepare(
    settings: Settings | None = None,
    engine: str = "auto",
    steps: int = 12,
    weights: tuple[float, float] = (0.9, 1.2),
    stack: dict[str, nn.Module] | None = None,
) -> Prepared:
    stack = stack or make_stack()
    pair = make_pair(
        make_file("subject", 104, [n for n in NAMES if n != STYLE_ONLY]),
        make_file("style", 210, [n for n in NAMES if n != CONTENT_ONLY]),
    )
    plan = make_plan(pair, score_units(pair.units, "auto", CPU), settings or Settings(), steps)
    placed, missing = place_units(plan, pair, make_sites(stack), weights, "tiny")
    assert not missing
    return Prepared(stack, pair, plan, Session(plan, placed, engine, CPU))


def dense(
    prepared: Prepared, before: Mapping[str, Mapping[str, Tensor]], masks: Mapping[str, int], weights: tuple[float, float]
) -> dict[str, dict[str, Tensor]]:
    """Every parameter of the stack in fp64: W0 + Σ w·ΔW for the LoRAs in the layer's mask, written out by hand."""
    want = {name: {k: t.double().clone() for k, t in tensors.items()} for name, tensors in before.items()}
    for unit in (*prepared.pair.units, *prepared.pair.added):
        for bit, delta, w in zip((1, 2), (unit.content, unit.style), weights):
            if delta is None or not masks[unit.name] & bit:
                continue
            weight = want[unit.name]["weight"]
            weight += w * delta.dense().double().reshape(weight.shape)
            if delta.bias is not None:
                want[unit.name]["bias"] += w * delta.bias.double()
    return want
