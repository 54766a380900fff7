"""Beside sd-webui-controlnet: a T2I adapter, whose picture is added within the denoiser, and a reference picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ..host import Host, encode
from ..jobs import HIRES, PLAIN, Model
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off

EXTENSION = "sd-webui-controlnet"
WITHOUT = {"prompt": PLAIN["prompt"]}
ADAPTER = "tiny_adapter"
PIXELS = 8  # of a side of what one element of the adapter's input covers

pytestmark = pytest.mark.hosts("a1111")


def adapter(widths: list[int]) -> dict[str, torch.Tensor]:
    """A random T2I adapter: two blocks for each of the denoiser's levels, of the level's width."""
    generator = torch.Generator().manual_seed(0)
    out: dict[str, torch.Tensor] = {}

    def convolution(name: str, outputs: int, inputs: int, size: int) -> None:
        weight = torch.randn(outputs, inputs, size, size, generator=generator)
        out[f"{name}.weight"] = weight / (inputs * size * size) ** 0.5
        out[f"{name}.bias"] = torch.zeros(outputs)

    convolution("conv_in", widths[0], 3 * PIXELS**2, 3)
    inputs = widths[0]
    for i, width in enumerate(width for width in widths for _ in range(2)):
        if width != inputs:
            convolution(f"body.{i}.in_conv", width, inputs, 1)
        convolution(f"body.{i}.block1", width, width, 3)
        convolution(f"body.{i}.block2", width, width, 1)
        inputs = width
    return out


def prepare(host: Host) -> dict:
    models = host.folder / "ControlNet"
    models.mkdir()
    weights = load_file(host.ckpt / host.sd15.checkpoint)
    blocks = [f"model.diffusion_model.input_blocks.{n}.0.out_layers.3.weight" for n in (1, 4, 7, 10)]
    save_file(adapter([len(weights[name]) for name in blocks]), models / f"{ADAPTER}.safetensors")
    return {"control_net_models_path": str(models), "control_net_modules_path": str(models)}


def picture() -> str:
    board = np.indices((64, 64)).sum(0) // 8 % 2 * 255
    return encode(np.stack([board] * 3, axis=-1))


def controlled(unit: dict, **fields: object) -> dict:
    arguments = {"enabled": True, "image": picture(), "weight": 1.0, **unit}
    return fields | {"alwayson_scripts": {"ControlNet": {"args": [arguments]}}}


def by_adapter(host: Host) -> dict:
    listed = host.must("/controlnet/model_list?update=true")["model_list"]
    return {"module": "none", "model": next(name for name in listed if name.startswith(ADAPTER))}


REFERENCE = {"module": "reference_only", "model": "None", "threshold_a": 0.5}


def used(model: Model) -> dict:
    return controlled(REFERENCE)


@ENGINES
def test_adapter(witness: Witness, engine: str):
    settings = {"engine": engine}
    assert_combines(witness, witness.model.uneven, settings, without=WITHOUT, **controlled(by_adapter(witness.host)))


@ENGINES
def test_reference_only(witness: Witness, engine: str):
    """The extension calls the denoiser once more at every step, for the picture."""
    settings = {"engine": engine}
    assert_combines(witness, witness.model.uneven, settings, without=WITHOUT, **controlled(REFERENCE))


def test_in_both_passes_of_hires_fix(witness: Witness):
    fields = controlled(by_adapter(witness.host), **HIRES)
    assert_combines(witness, witness.model.uneven, without=WITHOUT | HIRES, passes=2, **fields)


def test_within_a_part_of_the_steps(witness: Witness):
    unit = by_adapter(witness.host) | {"guidance_start": 0.3, "guidance_end": 0.7}
    assert_combines(witness, witness.model.uneven, without=WITHOUT, **controlled(unit))


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    assert_off_is_off(host, host_without_klora, controlled(by_adapter(host)), controlled(REFERENCE))
