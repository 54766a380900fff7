"""LoRA files for the tiny pipelines, as diffusers and kohya write them; text-encoder parts too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..dialects import write_dialect
from ..pairs import Layers, random_layers
from .pipes import denoiser

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
FUSED = {"to_q": "to_qkv", "add_q_proj": "to_added_qkv"}  # by the first member's name


def shapes(model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)) -> dict[str, tuple[int, ...]]:
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}


def fused_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The layers of Flux or SD3 that kohya's names exist for, q, k and v (and the mlp of a single block) in one."""
    out: dict[str, tuple[int, ...]] = {}
    for name, (rows, *width) in shapes(model, (nn.Linear,)).items():
        block, _, last = name.rpartition(".")
        single = name.startswith("single_")
        if last == "proj_mlp":
            continue
        if single and last == "to_q":
            mlp = model.get_submodule(f"{block.rpartition('.')[0]}.proj_mlp").weight.shape[0]  # type: ignore[union-attr]
            out[f"{block}.to_qkv_mlp_proj"] = (3 * rows + mlp, *width)
        elif last in FUSED:
            out[f"{block}.{FUSED[last]}"] = (3 * rows, *width)
        elif last not in ("to_k", "to_v", "add_k_proj", "add_v_proj") and "blocks." in name:
            out[name] = (rows, *width)
    return out


def layers_of(pipe: Any, seed: int, rank: int = 2, only: str = "", alpha: float | None = None) -> Layers:
    """A LoRA of every Linear and convolution of the denoiser (those with ``only`` in their name), uneven in strength."""
    there = {name: shape for name, shape in shapes(denoiser(pipe)).items() if only in name}
    return random_layers(seed, there, rank, 0.03, alpha)


def text_tensors(pipe: Any, seed: int, names: Iterable[str] = ("text_encoder", "text_encoder_2")) -> dict[str, Tensor]:
    """PEFT tensors of the attention of the CLIP text encoders."""
    tensors: dict[str, Tensor] = {}
    for n, name in enumerate(names):
        encoder = getattr(pipe, name, None)
        if encoder is None or not hasattr(encoder, "text_model"):
            continue
        there = {k: v for k, v in shapes(encoder, (nn.Linear,)).items() if "self_attn" in k}
        for layer, (up, down, _) in random_layers(seed + n, there, 2, 0.3).items():
            tensors[f"{name}.{layer}.lora_B.weight"] = up
            tensors[f"{name}.{layer}.lora_A.weight"] = down
    return tensors


def dialect_of(pipe: Any) -> str:
    """The dialect that diffusers' own loader reads for this pipeline."""
    return "peft" if hasattr(pipe, "unet") else "diffusers-flux"


def write_pair(pipe: Any, folder: Path, text: bool = False, only: str = "") -> tuple[Path, Path]:
    """Content of rank 2 and style of rank 3, on the same layers."""
    paths = folder / "subject.safetensors", folder / "painter.safetensors"
    for path, seed, rank in zip(paths, (1, 2), (2, 3)):
        extra = text_tensors(pipe, 10 * seed) if text else None
        write_dialect(layers_of(pipe, seed, rank, only), dialect_of(pipe), path, extra)
    return paths


class Kept(NamedTuple):
    numbers: Tensor
    place: int
    dtype: torch.dtype


def snapshot(pipe: Any) -> dict[str, Any]:
    """What must be as before: every weight's numbers and place in memory, the module tree, every hook and class."""
    out: dict[str, Any] = {"class": type(pipe), "call": pipe.__call__.__func__}
    for part, module in pipe.components.items():
        if not isinstance(module, nn.Module):
            continue
        for name, p in (*module.named_parameters(), *module.named_buffers()):
            out[f"{part}.{name}"] = Kept(p.detach().clone(), p.data_ptr(), p.dtype)
        for name, m in module.named_modules():
            hooks = [list(getattr(m, kind)) for kind in HOOKS]
            out[f"{part}.{name} is"] = id(m), type(m), hooks, m._compiled_call_impl, sorted(vars(m))
    return out


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not bit for bit, and object for object, what it was."""
    return [name for name in (*before, *(after.keys() - before.keys())) if not alike(before.get(name), after.get(name))]


def alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Kept) or not isinstance(other, Kept):
        return bool(one == other)
    return torch.equal(one.numbers, other.numbers) and one[1:] == other[1:]
