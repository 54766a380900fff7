"""LyCORIS is the reference: what it trained and merges into a model is what we read from its file and add."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from klora_lib.errors import LoraFileError
from klora_lib.lora.file import lora_file

lycoris = pytest.importorskip("lycoris", reason="LyCORIS, one of the test requirements, is not installed")

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
NORM = "down_blocks.0.resnets.0.norm1"
INPUTS = {LINEAR: (3, 12), CONV: (1, 4, 6, 6), POINT: (1, 8, 6, 6), NORM: (1, 4, 6, 6)}
NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": dict(algo="lora"),
    "LoCon with a CP core": dict(algo="locon", use_tucker=True),
    "LoRA with a scalar": dict(algo="lora", use_scalar=True),
    "LoHa": dict(algo="loha"),
    "LoHa with a CP core": dict(algo="loha", use_tucker=True),
    "LoKr": dict(algo="lokr"),
    "LoKr of small factors": dict(algo="lokr", factor=2, decompose_both=True, linear_dim=1, conv_dim=1),
    "LoKr with a CP core": dict(algo="lokr", factor=2, use_tucker=True, linear_dim=1, conv_dim=1),
    "LoKr of whole factors": dict(algo="lokr", full_matrix=True),
    "GLoRA": dict(algo="glora"),
    "full": dict(algo="full"),
    "norms": dict(algo="lora", train_norm=True),
    "DoRA by output": dict(algo="lora", dora_wd=True, wd_on_output=True),
    "DoRA by input": dict(algo="lora", dora_wd=True, wd_on_output=False),
    "DoRA of a LoHa": dict(algo="loha", dora_wd=True, wd_on_output=True),
    "DoRA of a LoKr": dict(algo="lokr", dora_wd=True, wd_on_output=False),
    "OFT": dict(algo="diag-oft"),
    "OFT with a scale": dict(algo="diag-oft", rescaled=True),
    "OFT within a bound": dict(algo="diag-oft", constraint=0.01),
    "BOFT": dict(algo="boft"),
    "BOFT with a scale": dict(algo="boft", rescaled=True),
    "IA3": dict(algo="ia3"),
}


def small_model() -> nn.Module:
    """A few layers of Stable Diffusion 1.5, by their names."""
    model = nn.Module()
    for path, layer in {
        LINEAR: nn.Linear(12, 8), CONV: nn.Conv2d(4, 8, 3, padding=1), POINT: nn.Conv2d(8, 16, 1), NORM: nn.GroupNorm(2, 4),
    }.items():  # fmt: skip
        place, names = model, path.split(".")
        for name in names[:-1]:
            if not hasattr(place, name):
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.add_module(names[-1], layer)
    return model


def train(model: nn.Module, **options: Any) -> Any:
    """A network of LyCORIS at work on ``model``, with other numbers than at its start."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    sizes = dict(linear_dim=4, linear_alpha=3, conv_dim=4, conv_alpha=3)
    network = lycoris.create_lycoris(model, 1.0, **{**sizes, **options})
    network.apply_to()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.add_(0.2 * noise)
    return network.eval()


def tensors_of(network: Any) -> dict[str, Tensor]:
    return {key: tensor.detach().clone().contiguous() for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize("which", NETWORKS)
def test_a_network_acts_as_it_did_in_training(which: str) -> None:
    """Each layer's output in LyCORIS is that with our update.  (LyCORIS' own merge takes the scale of some types twice.)"""
    torch.manual_seed(len(which))
    model = small_model()
    before = deepcopy(model)
    network = train(model, **NETWORKS[which])
    file = lora_file(tensors_of(network), "trained")
    assert not file.unknown
    found = {**file.modules, **file.added}
    assert len(found) == len(network.loras) >= 3
    for layer, delta in found.items():
        x = torch.randn(INPUTS[layer], generator=torch.Generator().manual_seed(1))
        ours = before.get_submodule(layer)
        plain, trained = ours(x), model.get_submodule(layer)(x)
        weight: Tensor = ours.weight
        with torch.no_grad():
            if ours.bias is not None:
                factor = 0 if delta.bias_factor is None else delta.bias_factor
                ours.bias.add_(ours.bias * factor + (0 if delta.bias is None else delta.bias))
            weight.add_(delta.update(weight.reshape(len(weight), -1)).reshape(weight.shape))
            assert torch.allclose(ours(x), trained, atol=1e-5), layer
        assert not torch.allclose(plain, trained, atol=1e-3)


def test_a_type_of_which_a_part_acts_at_each_step_is_called_by_its_name() -> None:
    with pytest.raises(LoraFileError, match=r"proj_in is of a type that is not read \(T-LoRA\)"):
        lora_file(tensors_of(train(small_model(), algo="tlora")), "trained")
