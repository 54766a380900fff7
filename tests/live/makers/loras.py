"""Random LoRA files in kohya's dialect for weights at hand. Needs torch and safetensors only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Targets = dict[str, Tensor]  # kohya's name of a layer -> its weight [out, in]


def targets(weights: Mapping[str, Tensor], prefix: str, wanted: Callable[[str], bool]) -> Targets:
    """The matrices among `weights` whose names, without `.weight`, are `wanted`."""
    names = {key: key.removesuffix(".weight") for key, weight in weights.items() if weight.ndim == 2}
    return {prefix + name.replace(".", "_"): weights[key] for key, name in names.items() if name != key and wanted(name)}


def having(layers: Targets, *words: str) -> Targets:
    return {name: weight for name, weight in layers.items() if any(word in name for word in words)}


def write(path: Path, layers: Targets, rank: int, alpha: float, seed: int) -> None:
    """In every layer std(ΔW) is std(W).  alpha/rank is to be a power of two: dialects without alpha have it in a factor."""
    assert math.log2(alpha / rank).is_integer() and layers, (alpha, rank, len(layers))
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, weight in sorted(layers.items()):  # sorted: a host may list them in an order of its own
        rows, columns = weight.shape
        # (alpha/rank) · up @ down of unit normal factors has std (alpha/rank) · sqrt(rank)
        factor = math.sqrt(float(weight.float().std()) / (alpha / rank * math.sqrt(rank)))
        up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        tensors[f"{name}.lora_up.weight"] = (up * factor).half()
        tensors[f"{name}.lora_down.weight"] = (down * factor).half()
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha)).half()
    save_file(tensors, path, {"format": "pt"})  # one entry: of several the order on disk would be random
    print(f"{path.name}: {len(layers)} layers, rank {rank}, alpha {alpha}")
