"""LoRA files for the small denoiser, as kohya would write them with its compvis names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .unet import CONTEXT, UNet

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def attention_layers(denoiser: nn.Module) -> list[str]:
    return [name for name, _ in denoiser.named_modules() if name.endswith(ATTENTION)]


def all_layers(denoiser: nn.Module) -> list[str]:
    return [name for name, m in denoiser.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def lora_tensors(
    denoiser: nn.Module, layers: Iterable[str], rank: int = 2, seed: int = 1, strength: float = 0.1, text: bool = False
) -> dict[str, Tensor]:
    """Low-rank modules for ``layers`` (compvis paths), uneven in strength, with an alpha of half the rank."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    tensors: dict[str, Tensor] = {}
    for layer in layers:
        out, fan_in, *window = denoiser.get_submodule(layer).weight.shape  # type: ignore[union-attr]
        key = f"lora_unet_{layer.replace('.', '_')}"
        size = strength * (0.5 + float(torch.rand(1, generator=g)) * 2)
        tensors[f"{key}.lora_up.weight"] = rand(out, rank, *(1 for _ in window)) * size
        tensors[f"{key}.lora_down.weight"] = rand(rank, fan_in, *window)
        tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
    if text:
        key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        tensors[f"{key}.lora_up.weight"] = rand(CONTEXT, rank) * strength * 3
        tensors[f"{key}.lora_down.weight"] = rand(rank, CONTEXT)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    return tensors


def write_loras(folder: Path) -> None:
    """subject and style (attention only), subject_full and style_full (every layer and text), deep (SDXL's)."""
    net, deep = UNet(), UNet(context=10, depth=2)
    files = {
        "subject": lora_tensors(net, attention_layers(net), seed=1),
        "style": lora_tensors(net, attention_layers(net), rank=3, seed=2),
        "subject_full": lora_tensors(net, all_layers(net), seed=3, text=True),
        "style_full": lora_tensors(net, all_layers(net), seed=4, text=True),
        "other_family": lora_tensors(deep, attention_layers(deep), seed=5),
        "conv_only": lora_tensors(net, ["out.2"], seed=6),
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
