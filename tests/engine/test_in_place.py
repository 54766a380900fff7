"""Theorem: a bypassed layer's own output is added to; whatever somebody else may have is copied first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.bypass import Bypassed, may_change
from klora_lib.engine.site import Site

from .cases import LAYERS, duo, make_layer, rand


class Watched:
    """A bypassed layer, what its own forward made, and what came out."""

    def __init__(self, module: nn.Module, layer: str = "linear", rows: tuple[int, int] | None = None):
        self.module = module
        self.made: list[Tensor] = []
        forward = module.forward

        def watched(*args: Any) -> Tensor:
            self.made.append(forward(*args))
            return self.made[-1]

        module.forward = watched  # type: ignore[method-assign]
        self.actor = Bypassed(Site(module, rows), duo(layer, "lora", "loha").deltas)
        self.actor.show(3)

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.module(x)
        return self.made[-1], out


@pytest.mark.parametrize("layer", ["linear", "linear without bias", "conv 3×3", "conv 1×1"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_output_of_its_own_is_added_to(layer: str, mode: Callable[[], Any]) -> None:
    x, plain = rand(*LAYERS[layer].x, seed=7), make_layer(layer)
    with mode():
        made, out = Watched(make_layer(layer), layer).call(x)
        assert out is made and not torch.equal(out, plain(x))


def test_three_sites_of_one_weight_share_the_output() -> None:
    module = nn.Linear(6, 12).requires_grad_(False)
    first = Watched(module, "rows of a fused linear", (0, 4))
    deltas = duo("rows of a fused linear", "lora", "full").deltas
    others = [Bypassed(Site(module, rows), deltas) for rows in ((4, 8), (8, 12))]
    for other in others:
        other.show(3)
    made, out = first.call(rand(5, 6, seed=7))
    assert out is made


class HandsOn(nn.Linear):
    """A layer that is skipped."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class HandsOnAView(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape)


class Keeps(nn.Linear):
    """A layer that answers as the last time."""

    last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is None:
            self.last = super().forward(x)
        return self.last


class Other(nn.Module):
    """Not one of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(rand(6, 6, seed=1), False), None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize("make", [lambda: HandsOn(6, 6), lambda: HandsOnAView(6, 6), lambda: Keeps(6, 6), Other])
@torch.no_grad()
def test_what_a_layer_hands_on_or_keeps_is_not_written(make: Callable[[], nn.Module]) -> None:
    from klora_lib.engine.site import SiteDeltas, WeightedDelta
    from klora_lib.lora.deltas import Lora

    module, x = make().requires_grad_(False), rand(5, 6, seed=7)
    delta = Lora(rand(6, 2, seed=1), rand(2, 6, seed=2), 1.0, (6, 6))
    before, theirs = x.clone(), module(x).clone()
    actor = Bypassed(Site(module), SiteDeltas(WeightedDelta(delta, 1.0), None))
    actor.show(1)
    for _ in range(2):
        assert torch.allclose(module(x), theirs + x @ delta.dense().T, atol=1e-5)
    actor.close()
    assert torch.equal(x, before) and torch.equal(module(x), theirs)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("first", [False, True])
@torch.no_grad()
def test_what_anothers_hook_has_seen_is_not_written(first: bool, everywhere: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append((output, output.clone()))

    module, x = make_layer("linear"), rand(5, 6, seed=7)
    register = nn.modules.module.register_module_forward_hook if everywhere else module.register_forward_hook
    handle = register(look) if first else None
    watched = Watched(module)
    handle = handle or register(look)
    try:
        made, out = watched.call(x)
    finally:
        handle.remove()
    assert out is not made and all(torch.equal(now, then) for now, then in seen)


def test_a_graph_of_gradients_is_not_written() -> None:
    made, out = Watched(make_layer("linear").requires_grad_(True)).call(rand(5, 6, seed=7))
    assert out is not made and made.requires_grad


def test_an_output_made_in_inference_mode_is_left_alone_outside() -> None:
    module, x = make_layer("linear"), rand(5, 6, seed=7)
    with torch.inference_mode():
        output = module(x)
    assert not may_change(module, (x,), output)
    with torch.inference_mode():
        assert may_change(module, (x,), output)
