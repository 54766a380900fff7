"""Random LoRAs by layer, rank and strength: what most tests need of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor

from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.rule.pairing import Pair, make_pair

from .dialects import dialect_tensors, write_dialect

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
ATTENTION = {  # layer: shape of its weight
    f"{BLOCK}.attn1.to_q": (12, 12),
    f"{BLOCK}.attn1.to_k": (12, 12),
    f"{BLOCK}.attn1.to_v": (12, 12),
    f"{BLOCK}.attn1.to_out.0": (12, 12),
    f"{BLOCK}.attn2.to_k": (12, 20),
    f"{BLOCK}.attn2.to_v": (12, 20),
}
OTHERS = {
    f"{BLOCK}.ff.net.2": (12, 24),
    "down_blocks.1.resnets.0.conv1": (8, 4, 3, 3),
    "down_blocks.1.attentions.0.proj_in": (12, 12),
}
SHAPES: Mapping[str, tuple[int, ...]] = {**ATTENTION, **OTHERS}

Module = tuple[Tensor, Tensor, "float | None"]  # up [out, rank, …], down [rank, in, …], alpha
Layers = dict[str, Module]


def random_layers(
    seed: int, shapes: Mapping[str, Sequence[int]] = SHAPES, rank: int = 2, strength: float = 1.0, alpha: float | None = None
) -> Layers:
    """One low-rank module a layer; layers differ in strength, so that they do not switch together."""
    g = torch.Generator().manual_seed(seed)
    layers: Layers = {}
    for layer, (out, *ins) in shapes.items():
        size = strength * 2.0 ** float(torch.randn(1, generator=g))
        up = torch.randn(out, rank, *(1 for _ in ins[1:]), generator=g) * size
        layers[layer] = up, torch.randn(rank, *ins, generator=g), alpha
    return layers


def scaled(layers: Layers, by: float) -> Layers:
    """Every ΔW times ``by``."""
    return {layer: (up * by, down, alpha) for layer, (up, down, alpha) in layers.items()}


def as_file(layers: Layers, name: str = "a LoRA", extra: Mapping[str, Tensor] | None = None) -> LoraFile:
    """The LoRA as reading its file would give it."""
    return lora_file({**dialect_tensors(layers, "peft"), **(extra or {})}, name, digest=name)


def write_file(layers: Layers, path: str | PathLike[str]) -> None:
    write_dialect(layers, "peft", path)


def as_pair(content: Layers, style: Layers) -> Pair:
    return make_pair(as_file(content, "subject"), as_file(style, "painter"))


def dense(module: Module) -> Tensor:
    """ΔW = alpha/rank · up @ down, fp64 [out, in·kh·kw]."""
    up, down, alpha = module
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return scale * (up.double().flatten(1) @ down.double().flatten(1))
