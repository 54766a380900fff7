"""Random LoRA pairs of full size, by the shapes of SDXL's attention and of Flux."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klora_lib.lora.file import lora_file
from klora_lib.rule.pairing import Pair, make_pair

from . import plan

Shapes = Mapping[str, tuple[int, int]]  # layer → [out, in]
Factors = dict[str, tuple[Tensor, Tensor]]  # layer → up [out, rank], down [rank, in], fp16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
HIDDEN, MLP = 3072, 12288


def list_flux_shapes() -> Shapes:
    """Every linear layer of Flux's 19 double and 38 single blocks, which trainers train by default."""
    double = {
        "attn.qkv": (3 * HIDDEN, HIDDEN), "attn.proj": (HIDDEN, HIDDEN),
        "mlp.0": (MLP, HIDDEN), "mlp.2": (HIDDEN, MLP), "mod.lin": (6 * HIDDEN, HIDDEN),
    }  # fmt: skip
    single = {
        "linear1": (3 * HIDDEN + MLP, HIDDEN), "linear2": (HIDDEN, HIDDEN + MLP), "modulation.lin": (3 * HIDDEN, HIDDEN),
    }  # fmt: skip
    out = {
        f"double_blocks.{i}.{stream}_{layer}": shape
        for i in range(19)
        for stream in ("img", "txt")
        for layer, shape in double.items()
    }
    return out | {f"single_blocks.{i}.{layer}": shape for i in range(38) for layer, shape in single.items()}


def list_attention_shapes(model: nn.Module) -> Shapes:
    """The projections of a denoiser's attention; those that the LoRAs of the benches are for."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.endswith(ATTENTION)}
    return {name: (m.out_features, m.in_features) for name, m in layers.items()}


def make_factors(shapes: Shapes, rank: int, seed: int, strength: float = 0.5, spread: float = 0.7) -> Factors:
    """ΔW of each layer about ``strength`` times as large as a weight of variance 1/in.

    spread: in how far layers differ, as a power of e.  A pair then has layers that switch at every step.
    """
    g = torch.Generator().manual_seed(seed)
    out = {}
    for layer, (rows, columns) in shapes.items():
        size = strength * math.exp(spread * (2 * float(torch.rand((), generator=g)) - 1)) / math.sqrt(columns * rank)
        up, down = (torch.randn(s, generator=g) * math.sqrt(size) for s in ((rows, rank), (rank, columns)))
        out[layer] = up.half(), down.half()
    return out


def make_random_pair(shapes: Shapes, ranks: tuple[int, int], prefix: str) -> Pair:
    """A pair in memory.  prefix: what PEFT's dialect puts before the layers of this model."""
    files = []
    for seed, (name, rank) in enumerate(zip(("subject", "style"), ranks)):
        files.append(lora_file(name_tensors(make_factors(shapes, rank, seed), prefix), name, digest=f"{name} {ranks}"))
    return make_pair(*files)


def name_tensors(factors: Factors, prefix: str) -> dict[str, Tensor]:
    named = {f"{prefix}.{layer}.lora_B.weight": up for layer, (up, _) in factors.items()}
    return named | {f"{prefix}.{layer}.lora_A.weight": down for layer, (_, down) in factors.items()}


def make_sdxl_pair(ranks: tuple[int, int]) -> Pair:
    return make_random_pair(plan.shapes(), ranks, "unet")


def make_flux_pair(ranks: tuple[int, int]) -> Pair:
    return make_random_pair(list_flux_shapes(), ranks, "diffusion_model")


def write_pair(folder: Path, pair: tuple[Factors, Factors]) -> tuple[Path, Path]:
    paths = folder / "subject.safetensors", folder / "style.safetensors"
    for factors, path in zip(pair, paths):
        save_file(name_tensors(factors, "unet"), path)
    return paths
