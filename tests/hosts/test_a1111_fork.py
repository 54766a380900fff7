"""Theorems about AUTOMATIC1111's forks: what their LoRA loader (``networks.py``) has changed is known, or named.

Of ussoewwin/A1111-for-Python3.14 as of 8588e0c: its functions and what they keep on a layer are A1111's; a file of which
more than half finds no layer is left alone as a whole; OpenCLIP's attention, which has no weight, is merged as a layer.
"""

from __future__ import annotations

import functools
import types
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from klora_lib.errors import HostError
from klora_lib.hosts import a1111, detect
from klora_lib.hosts.contract import Entry, TextPart
from klora_lib.lora.file import lora_file

from ..fakes import networks
from ..fakes.a1111 import FakeA1111
from ..fakes.processing import Processing


def reset_other(layer: nn.Module) -> None:
    layer.network_current_names = ()  # type: ignore[assignment]
    layer.network_weights_saved = layer.network_bias_backup = None  # type: ignore[assignment]


def test_a_backup_of_another_name_is_named(host: FakeA1111, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.networks, "network_reset_cached_weight", reset_other)
    with pytest.raises(HostError, match="compared with AUTOMATIC1111's, it lacks network_weights_backup$"):
        detect()


def test_an_extensions_wrapper_hides_nothing(host: FakeA1111, monkeypatch: pytest.MonkeyPatch) -> None:
    reset = host.networks.network_reset_cached_weight

    @functools.wraps(reset)
    def wrapper(layer: nn.Module) -> None:
        reset(layer)

    for other in (wrapper, functools.partial(reset)):  # of the second nothing can be told
        monkeypatch.setattr(host.networks, "network_reset_cached_weight", other)
        assert a1111.find_missing() == []


def test_a_text_part_that_the_loader_leaves_alone_is_told(host: FakeA1111, monkeypatch: pytest.MonkeyPatch) -> None:
    load = host.networks.load_network

    def load_network(name: str, on_disk: Any) -> networks.Network:
        network = load(name, on_disk)
        names = networks.by_layer(networks.read(on_disk.filename))
        return network if 2 * len(network.modules) >= len(names) else networks.Network(name, on_disk)

    monkeypatch.setattr(host.networks, "load_network", load_network)
    q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    known, unknown = "lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_te_text_model_encoder_layers_7_mlp_fc1"

    def told(*layers: str) -> list[str]:
        tensors = {f"{q}.lora_A.weight": torch.ones(2, 8), f"{q}.lora_B.weight": torch.ones(8, 2)}
        for layer in layers:
            tensors[f"{layer}.lora_down.weight"] = torch.ones(2, 6)
            tensors |= {f"{layer}.lora_up.weight": torch.ones(6, 2), f"{layer}.alpha": torch.tensor(2.0)}
        p = Processing(host)
        entry = Entry("style", host.networks.available_networks["style"].filename)
        detect().load_text_parts(p, {}, [TextPart(entry, lora_file(tensors, "style"), 1.0)])
        return list(p.comments)

    assert told(known, unknown) == []
    assert told(unknown) == ["K-LoRA: this WebUI found no place for the text encoder part of 'style'"]


def test_an_attention_without_a_weight_is_backed_up_and_merged_aside(
    host: FakeA1111, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a pass goes on and its networks change: aside when the host is about to write, and only then."""
    attention = nn.MultiheadAttention(6, 2)
    attention.network_layer_name = "attn"  # type: ignore[assignment]
    asides: list[Any] = []

    def apply(layer: Any) -> None:
        wanted = networks.wanted_names(host.networks.loaded_networks)
        if wanted and getattr(layer, "network_weights_backup", None) is None:
            layer.network_weights_backup = layer.in_proj_weight.clone(), layer.out_proj.weight.clone()
        layer.network_current_names = wanted

    @contextmanager
    def aside(modules: Any) -> Any:
        asides.append(modules)
        yield

    monkeypatch.setattr(host.networks, "network_apply_weights", apply)
    with detect().wrap_rewrites(aside):
        host.networks.network_apply_weights(attention)
        assert asides == []
        host.networks.loaded_networks.append(types.SimpleNamespace(
            name="x", te_multiplier=1.0, unet_multiplier=1.0, dyn_dim=None
        ))  # fmt: skip
        for _ in range(2):
            host.networks.network_apply_weights(attention)
        assert asides == [(attention,)]
    assert host.networks.network_apply_weights is apply
