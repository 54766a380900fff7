"""Theorems of Neo 2.27 to 2.29, on stand-ins: what we cannot read or add to is refused in one sentence."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora_lib.errors import HostError
from klora_lib.hosts import neo, neo_online

from ..engine.cases import rand
from ..fakes.neo import FakeNeo
from ..fakes.neo_layers import DYNAMIC, Linear

TO_Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def host(forge_neo: FakeNeo) -> FakeNeo:
    return forge_neo


def loaded(host: FakeNeo) -> Any:
    host.networks.load_networks(["other"], [1.0], [1.0])
    host.load_model_gpu(host.sd_model.forge_objects.unet)
    return host.unet.get_submodule(TO_Q)


def another_name(layer: Any) -> None:
    layer._dyn_oft = layer._dyn_ups


def another_shape(layer: Any) -> None:
    layer._dyn_ups = [(up, rank) for up, rank, _ in layer._dyn_ups]


def no_strength(layer: Any) -> None:
    del layer._dyn_ups[0][2]["strength"]


def other_ranks(layer: Any) -> None:
    layer._dyn_down = layer._dyn_down[:1]


def another_patch(layer: Any) -> None:
    layer.weight_function = [types.SimpleNamespace(patch=[("lora", None)])]


@pytest.mark.parametrize("change", [another_name, another_shape, no_strength, other_ranks, another_patch])
def test_a_form_that_we_cannot_read_is_refused(host: FakeNeo, change: Callable[[Any], None]) -> None:
    change(loaded(host))
    told = rf"loader has changed: K-LoRA cannot read the LoRAs that {TO_Q} adds at every forward"
    with pytest.raises(HostError, match=told.replace(".", r"\.")):
        neo.make_host().find_sites()


def test_loras_at_every_forward_that_are_nowhere_to_be_found_are_refused(host: FakeNeo) -> None:
    loaded(host)
    assert neo.make_host().find_sites()
    for layer in host.unet.modules():
        layer.__dict__ |= {"_now_" + name: vars(layer).pop(name) for name in DYNAMIC if name in vars(layer)}
        vars(layer).pop("weight_function", None)
    with pytest.raises(HostError, match="it adds LoRAs at every forward in a way that K-LoRA does not know"):
        neo.make_host().find_sites()


def test_patches_that_are_only_noted_are_no_drift(host: FakeNeo) -> None:
    """Before a job the patcher knows of the prompt's LoRAs, the layers do not."""
    host.networks.load_networks(["other"], [1.0], [1.0])
    assert host.sd_model.forge_objects.unet.has_online_lora() and neo.make_host().find_sites()


def test_no_hook_is_left_where_a_pass_ends_with_an_error(host: FakeNeo) -> None:
    loaded(host)
    asides: list[Any] = []
    unet = host.sd_model.forge_objects.unet
    with pytest.raises(RuntimeError, match="ours"), neo_online.follow_strengths(unet, asides.append):
        assert host.unet._forward_pre_hooks
        raise RuntimeError("ours")
    assert not host.unet._forward_pre_hooks and asides == []


class Fused(nn.Module):
    """As Qwen-Image 2.1's feed forward: its last layer is never called itself."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.out = Linear(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return linear_input_act(self.out, x, "swiglu")


def linear_input_act(linear: Linear, x: Tensor, act: str) -> Tensor:
    return nn.functional.linear(nn.functional.silu(x), linear.weight.dequantize())


def test_layers_that_are_computed_without_being_called_are_refused(host: FakeNeo, monkeypatch: pytest.MonkeyPatch) -> None:
    host.unet.add_module("mlp", Fused(rand(4, 4, seed=1)))
    with pytest.raises(HostError, match=r"^mlp\.out is computed in int8 together with an activation"):
        neo.make_host().find_sites()
    host.unet.mlp.out.weight = nn.Parameter(rand(4, 4, seed=1), requires_grad=False)
    assert neo.make_host().find_sites()
    fast = types.SimpleNamespace(allow_fp16_accumulation=True)  # as torch has it since 2.7
    monkeypatch.setattr(torch.backends.cuda, "matmul", fast)
    with pytest.raises(HostError, match=r"^mlp\.out is computed in fp16 accumulation together with an activation"):
        neo.make_host().find_sites()


class ParameterInt8(nn.Parameter):
    """Of a branch of Neo: a flat blob, its layer has the function by which the patcher reads it."""


def test_weights_that_the_patcher_can_read_are_read_by_its_own_function(host: FakeNeo) -> None:
    leaf = nn.Module()
    leaf.weight = ParameterInt8(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    host.unet.add_module("leaf", leaf)
    with pytest.raises(HostError, match=r"packed as ParameterInt8 \(leaf\), which K-LoRA cannot read"):
        neo.make_host().find_sites()
    leaf.convert_weight = lambda weight: weight.float() + 2  # type: ignore[assignment]
    site = neo.make_host().find_sites()["leaf"]
    assert torch.equal(site.read(leaf), torch.full((4, 4), 2.0))
