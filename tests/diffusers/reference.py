"""K-LoRA once more, by brute force and with nothing of klora_lib: dense matrices, the formula, before every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .pipes import denoiser

Chosen = Callable[[float], Callable[[str], str]]  # progress → layer → "content" | "style"


def dense(path: Path, prefix: str) -> dict[str, tuple[Tensor, int]]:
    """Layer → (up @ down as [out, in·kh·kw], rank) of a PEFT file's part."""
    tensors = load_file(path)
    found = {}
    for key, down in tensors.items():
        if key.startswith(f"{prefix}.") and key.endswith(".lora_A.weight"):
            layer = key.removeprefix(f"{prefix}.").removesuffix(".lora_A.weight")
            up = tensors[f"{prefix}.{layer}.lora_B.weight"]
            found[layer] = up.double().flatten(1) @ down.double().flatten(1), down.shape[0]
    return found


def rule(content: dict, style: dict, alpha: float = 1.5, beta: float = 0.5) -> Chosen:
    gamma = sum(c.abs().sum() for c, _ in content.values()) / sum(s.abs().sum() for s, _ in style.values())
    sums = {}
    for layer, (c, rank_c) in content.items():
        s, rank_s = style[layer]
        k = min(rank_c * rank_s, c.numel())
        sums[layer] = [x.abs().flatten().sort(descending=True).values[:k].sum() for x in (c, s)]

    def at(progress: float) -> Callable[[str], str]:
        scale = gamma * (alpha * progress + beta)
        return lambda layer: "content" if sums[layer][0] >= scale * sums[layer][1] else "style"

    return at


@contextmanager
def brute_force(
    pipe: Any, content: Path, style: Path, progress: Callable[[int], float], alpha: float = 1.5, beta: float = 0.5,
    weights: tuple[float, float] = (1.0, 1.0), text: tuple[float, float] = (1.0, 1.0),
) -> Iterator[list[str]]:  # fmt: skip
    """``pipe``, a copy that nobody else needs, with both files; ``progress``: of the n-th denoiser call.

    Yields a list that gets one string of C and S a call.
    """
    model, prefix = denoiser(pipe), "unet" if hasattr(pipe, "unet") else "transformer"
    both = {"content": dense(content, prefix), "style": dense(style, prefix)}
    at = rule(both["content"], both["style"], alpha, beta)
    base = {layer: model.get_submodule(layer).weight.detach().double() for layer in both["content"]}
    calls: list[str] = []

    @torch.no_grad()
    def before(*_: Any) -> None:
        choose = at(progress(len(calls)))
        for layer, weight in base.items():
            who = choose(layer)
            change = both[who][layer][0].reshape(weight.shape) * weights[who == "style"]
            model.get_submodule(layer).weight.copy_(weight + change)
        calls.append("".join(choose(layer)[0].upper() for layer in base))

    handle = model.register_forward_pre_hook(before)
    with torch.no_grad():
        for path, weight in zip((content, style), text):
            for name in ("text_encoder", "text_encoder_2"):
                for layer, (change, _) in dense(path, name).items():
                    getattr(pipe, name).get_submodule(layer).weight.add_(weight * change)
    try:
        yield calls
    finally:
        handle.remove()
