"""Theorem: every way Forge keeps a weight is told apart, has the shape of its numbers, and is read as Forge computes."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.bypass import Bypassed
from klora_lib.engine.layers import list_sites
from klora_lib.engine.merge import Merged
from klora_lib.engine.session import Placed, Session
from klora_lib.engine.site import Packed, Site, SiteDeltas, WeightedDelta
from klora_lib.errors import HostError
from klora_lib.hosts.forge_weights import find_packing, read_weight
from klora_lib.lora.deltas import Lora
from klora_lib.rule.selectors import CONTENT

from ..engine.storages import IN, OUT, Cast, Linear4bit, LinearGGUF, ParameterGGUF, Params4bit, base, pack, unpack

CPU = torch.device("cpu")
SHAPE = (OUT, IN)


def layer(kind: str) -> nn.Module:
    """A layer as Forge has it, of that kind."""
    made: dict[str, Any] = {
        "plain": lambda: Cast(base().half()),
        "fp8": lambda: Cast(base().to(torch.float8_e4m3fn)),
        "scaled": lambda: Cast((base() * 8).to(torch.float8_e4m3fn), 1 / 8),
        "bnb": lambda: Linear4bit(Params4bit(base()).packed()),
        "bnb, not yet packed": lambda: Linear4bit(Params4bit(base())),
        "gguf": lambda: LinearGGUF(ParameterGGUF(*pack(base()), SHAPE)),
    }
    return made[kind]()


KINDS = {
    "plain": None,
    "fp8": None,
    "scaled": "torch.float8_e4m3fn weights with a scale",
    "bnb": "bitsandbytes nf4 weights",
    "bnb, not yet packed": "bitsandbytes nf4 weights",
    "gguf": "gguf weights",
}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge's own reader by its contract: to the device, unpacked, to the type, scaled, LoRAs of the layer added."""

    def get_weight_and_bias(layer: Any, weight_args: dict, bias_args: None = None, weight_fn: Any = None) -> tuple:
        weight = layer.weight
        if weight_fn is not None:
            weight = weight_fn(weight.to(device=weight_args["device"]) if weight.device != weight_args["device"] else weight)
        weight = weight.to(**weight_args)
        if layer.scale_weight is not None:
            weight = weight * layer.scale_weight.to(weight)
        for patch in getattr(layer, "forge_online_loras", {}).get("weight", []):
            weight = weight + patch
        return weight, layer.bias

    def functional_dequantize_4bit(weight: Params4bit) -> Tensor:
        return unpack(weight.data, weight.quant_state.step, weight.quant_state.shape) if weight.bnb_quantized else weight

    contents = {
        "backend.operations": {"get_weight_and_bias": get_weight_and_bias},
        "backend.operations_gguf": {"dequantize_tensor": lambda w: unpack(w.data, w.step, w.shape)},
        "backend.operations_bnb": {"functional_dequantize_4bit": functional_dequantize_4bit},
    }
    monkeypatch.setitem(sys.modules, "backend", types.ModuleType("backend"))
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("kind", KINDS)
def test_each_packing_is_named_and_has_the_shape_of_its_numbers(kind: str) -> None:
    wanted = KINDS[kind]
    assert find_packing(layer(kind)) == (None if wanted is None else Packed(wanted, SHAPE))
    assert Site(layer(kind), None, packed=find_packing(layer(kind))).shape == SHAPE


def actor(module: nn.Module, engine: str) -> object:
    deltas = SiteDeltas(WeightedDelta(Lora(torch.ones(OUT, 1), torch.ones(1, IN), 1.0, SHAPE), 1.0), None)
    placed = Placed(None, CONTENT, Site(module, None, partial(read_weight, device=CPU), find_packing(module)), deltas)
    return Session(None, [placed], engine, CPU).actors[0]  # type: ignore[arg-type]  # never advanced


def refusal(module: nn.Module) -> str:
    """Of merge; "" where it merges."""
    try:
        assert isinstance(actor(module, "merge"), Merged)
    except HostError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_refusal_to_merge_names_no_lora(kind: str) -> None:
    """One that acts at every forward may be the last job's: before a pass, the host has not taken it away yet."""
    module = layer(kind)
    alone = refusal(module)
    assert alone == f"engine: merge cannot write {KINDS[kind] or 'torch.float8_e4m3fn weights'}; choose auto or bypass"
    for name in ("bias", "weight"):
        module.forge_online_loras = {name: []}  # type: ignore[assignment]
        assert refusal(module) == alone and isinstance(actor(module, "auto"), Bypassed)


def test_a_plain_weight_under_a_lora_that_acts_at_every_forward() -> None:
    """It is added beside, as DoRA acts on what the layer computes with.  One on the bias alone changes nothing."""
    module = layer("plain")
    module.forge_online_loras = {"bias": []}  # type: ignore[assignment]
    assert find_packing(module) is None and refusal(module) == "" and isinstance(actor(module, "auto"), Merged)
    module.forge_online_loras = {"weight": []}  # type: ignore[assignment]
    assert isinstance(actor(module, "auto"), Bypassed) and find_packing(module).shape == SHAPE
    mode = "torch.float16 weights of a model that adds LoRAs at every forward"
    assert refusal(module) == f"engine: merge cannot write {mode}; choose auto or bypass"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("backend")
def test_the_numbers_are_those_the_layer_computes_with(kind: str) -> None:
    """Asked of the layer itself: its answers to the unit vectors."""
    module = layer(kind)
    if not hasattr(module, "scale_weight"):
        module.scale_weight = None
    eye = torch.eye(IN)
    computed = (module(eye) - module(torch.zeros(IN))).T
    got = read_weight(module, CPU)
    assert got.dtype == torch.float32 and not got.requires_grad
    assert torch.allclose(got, computed, atol=1e-6)
    module.forge_online_loras = {"weight": [torch.ones(SHAPE)]}  # type: ignore[assignment]
    assert torch.allclose(read_weight(module, CPU), computed + 1, atol=1e-6)


def test_a_packed_fused_projection_is_cut_by_its_numbers() -> None:
    """A packed [N, 1] tensor has neither its rows nor its width."""
    root = nn.Module()
    root.add_module("single_blocks", nn.ModuleList([nn.Module()]))
    weight = Params4bit(torch.randn(3 * 6 + 24, 6)).packed()
    root.single_blocks[0].linear1 = Linear4bit(weight)
    assert tuple(weight.shape) == (42 * 6 // 2, 1)
    sites = list_sites(root, partial(read_weight, device=CPU), find_packing)
    stem = "single_transformer_blocks.0"
    rows = [sites[f"{stem}.{part}"].rows for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert rows == [(0, 6), (6, 12), (12, 18), (18, 42)]
    assert sites[f"{stem}.proj_mlp"].shape == (24, 6) and sites[f"{stem}.attn.to_qkv_mlp_proj"].shape == (42, 6)
