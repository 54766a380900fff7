"""The methods once more, by hand: dense fp64 matrices, each formula as its paper has it, nothing of klora_lib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pipes import denoiser
from .reference import dense, rule

Dense = dict[str, Tensor]
Update = Callable[[float], Dense]  # progress → layer → what is added to its weight
WEIGHTS = (0.9, 1.1)


def est(c: Dense, s: Dense, alpha: float = 1.5, beta: float = 0.5) -> Update:
    gamma = sum(float((x * x).sum()) for x in c.values()) / sum(float((x * x).sum()) for x in s.values())

    def at(progress: float) -> Dense:
        threshold = gamma * (alpha * progress + beta)
        mine = {n: float((c[n] * c[n]).sum()) >= threshold * float((s[n] * s[n]).sum()) for n in c}
        return {n: WEIGHTS[0] * c[n] if mine[n] else WEIGHTS[1] * s[n] for n in c}

    return at


def projected(c: Tensor, s: Tensor, mu: float) -> Tensor:
    _, sizes, right = torch.linalg.svd(s, full_matrices=False)
    q = right[sizes > 1e-9 * sizes.max()].T
    return c @ (torch.eye(c.shape[1], dtype=c.dtype) - mu / (1 + mu) * q @ q.T)


def np(c: Dense, s: Dense, mu: float = 0.5) -> Update:
    total = {n: WEIGHTS[0] * projected(c[n], s[n], mu) + WEIGHTS[1] * s[n] for n in c}
    return lambda progress: total


def trimmed(x: Tensor, density: float) -> Tensor:
    kept = torch.zeros_like(x)
    order = x.abs().flatten().argsort(descending=True)[: round(density * x.numel())]
    kept.view(-1)[order] = x.flatten()[order]
    return kept


def ties(c: Dense, s: Dense, density: float = 0.2) -> Update:
    total = {}
    for n in c:
        one, two = trimmed(WEIGHTS[0] * c[n], density), trimmed(WEIGHTS[1] * s[n], density)
        agree = [x * (x * (one + two) > 0) for x in (one, two)]
        out = (agree[0] + agree[1]) / sum((x != 0).double() for x in agree).clamp(min=1)
        total[n] = out
    return lambda progress: total


def average(c: Dense, s: Dense, steps: int, ranks: tuple[int, int]) -> Update:
    at = rule({n: (x, ranks[0]) for n, x in c.items()}, {n: (x, ranks[1]) for n, x in s.items()})
    chosen = [at(t / steps) for t in range(steps)]
    p = {n: sum(choose(n) == "content" for choose in chosen) / steps for n in c}
    total = {n: p[n] * WEIGHTS[0] * c[n] + (1 - p[n]) * WEIGHTS[1] * s[n] for n in c}
    return lambda progress: total


def blora(c: Dense, s: Dense) -> Update:
    total = {n: torch.zeros_like(c[n]) for n in c}
    total |= {n: WEIGHTS[0] * c[n] for n in c if n.startswith("up_blocks.0.attentions.0.")}
    total |= {n: WEIGHTS[1] * s[n] for n in c if n.startswith("up_blocks.0.attentions.1.")}
    return lambda progress: total


def both(pipe: Any, paths: tuple[Path, Path]) -> tuple[Dense, Dense]:
    """ΔW of content and of style, by layer."""
    content, style = (dense(path, "unet" if hasattr(pipe, "unet") else "transformer") for path in paths)
    return {n: x for n, (x, _) in content.items()}, {n: x for n, (x, _) in style.items()}


@contextmanager
def written(pipe: Any, update: Update, steps: int) -> Iterator[list[Dense]]:
    """``pipe``, a copy that nobody else needs, with W + ΔW of the moment written before every call."""
    model, calls = denoiser(pipe), []
    base = {n: model.get_submodule(n).weight.detach().double() for n in update(0)}

    @torch.no_grad()
    def before(*_: Any) -> None:
        calls.append(update(len(calls) / steps))
        for n, weight in base.items():
            model.get_submodule(n).weight.copy_(weight + calls[-1][n].reshape(weight.shape))

    handle = model.register_forward_pre_hook(before)
    try:
        yield calls
    finally:
        handle.remove()
