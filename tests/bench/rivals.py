"""The ways of others, on the same layers and factors, written from the paper's words; and K-LoRA by brute force.

Nothing here uses klora_lib: the factors are those that were written into the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .pairs import Factors

ALPHA, BETA = 1.5, 0.5  # the paper's


@dataclass(frozen=True)
class Layer:
    """A layer of the model with the factors of both LoRAs on its device, in the type of the file."""

    module: Any  # nn.Linear; torch types its weight as Tensor | Module
    content: tuple[Tensor, Tensor]  # up [out, rank], down [rank, in]
    style: tuple[Tensor, Tensor]

    @property
    def k(self) -> int:
        return min(self.content[0].shape[1] * self.style[0].shape[1], self.module.weight.numel())

    def update(self, content: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW of one LoRA, [out, in]."""
        up, down = self.content if content else self.style
        return up.to(dtype) @ down.to(dtype)


def find_layers(model: nn.Module, pair: tuple[Factors, Factors]) -> list[Layer]:
    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    there = [{name: (up.to(device), down.to(device)) for name, (up, down) in factors.items()} for factors in pair]
    return [Layer(modules[name], there[0][name], there[1][name]) for name in pair[0]]


def sum_topk(update: Tensor, k: int) -> Tensor:
    return torch.topk(update.abs().flatten(), k, sorted=False).values.sum()


def find_gamma(layers: Sequence[Layer]) -> float:
    """γ: all of |ΔW_c| by all of |ΔW_s|."""
    content, style = (
        sum(float(layer.update(side).abs().sum(dtype=torch.float64)) for layer in layers) for side in (True, False)
    )
    return content / style


def compute_scale(step: int, steps: int) -> float:
    """S(t) = α·t/T + β."""
    return ALPHA * step / steps + BETA


def sum_by_force(layers: Sequence[Layer]) -> list[tuple[float, float]]:
    """Of each layer the Top-K sums of content and style: every product whole, and a search through all of it."""
    content, style = ([float(sum_topk(layer.update(side), layer.k)) for layer in layers] for side in (True, False))
    return list(zip(content, style))


def choose_by_force(sums: Sequence[tuple[float, float]], gamma: float, steps: int) -> list[list[bool]]:
    """Whether content acts: layers × steps."""
    return [[content >= gamma * compute_scale(t, steps) * style for t in range(steps)] for content, style in sums]


# --- what acts beside the weight ---


@contextmanager
def hooked(layers: Sequence[Layer], add: Callable[[Layer, Tensor], Tensor]) -> Iterator[None]:
    """While open, every layer's output has ``add(layer, input)`` more."""

    def hook(layer: Layer, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + add(layer, args[0])

    handles = [layer.module.register_forward_hook(partial(hook, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_at_every_forward(gamma: float, progress: Callable[[], float]) -> Callable[[Layer, Tensor], Tensor]:
    """As the published scripts do: at every forward of every layer both products, both Top-K sums, and ΔW·x.

    progress: t/T of the present step.
    """

    def add(layer: Layer, x: Tensor) -> Tensor:
        updates = layer.update(True), layer.update(False)
        content, style = (sum_topk(update, layer.k) for update in updates)
        chosen = updates[0] if content >= gamma * (ALPHA * progress() + BETA) * style else updates[1]
        return nn.functional.linear(x, chosen.to(x.dtype))

    return add


def add_online(layer: Layer, x: Tensor, content: bool = True) -> Tensor:
    """One LoRA as hosts add it to the output of a layer: two thin products in the input's type, and a sum."""
    up, down = layer.content if content else layer.style
    return nn.functional.linear(nn.functional.linear(x, down.to(x.dtype)), up.to(x.dtype))


# --- what is written into the weight ---


def keep(weight: Tensor) -> Tensor:
    """A copy, in bf16 where nothing is lost by that."""
    narrow = weight.to(torch.bfloat16, copy=True)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight.clone()


class Weights:
    """The layers' own weights, kept aside, and writing into those of the model."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = layers
        self.own = [keep(layer.module.weight.detach()) for layer in layers]

    @torch.no_grad()
    def restore(self) -> None:
        for layer, own in zip(self.layers, self.own):
            layer.module.weight.copy_(own)

    @torch.no_grad()
    def add_both(self) -> None:
        """The additive merge: W + ΔW_c + ΔW_s, in fp32, rounded once."""
        for layer, own in zip(self.layers, self.own):
            total = own.to(torch.float32, copy=True)
            for up, down in (layer.content, layer.style):
                total.addmm_(up.float(), down.float())
            layer.module.weight.copy_(total)

    @torch.no_grad()
    def write(self, content: Sequence[bool], dtype: torch.dtype, before: Sequence[bool] | None = None) -> None:
        """W + ΔW of the LoRA of each layer, from the kept weight, computed in ``dtype`` and rounded once.

        before: what the weights have now; only layers for which ``content`` differs are written.  None: all are.
        """
        for i, (layer, own) in enumerate(zip(self.layers, self.own)):
            if before is None or before[i] != content[i]:
                layer.module.weight.copy_(own.to(dtype) + layer.update(content[i], dtype))
