"""Bad input: one KLoraError, one sentence, before anything is changed (``make`` checks that it was not)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from klora_lib.diffusers import klora
from klora_lib.errors import KLoraError

from .pipes import FAMILIES


def refused(pipe: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(KLoraError) as caught:
        with klora(pipe, *args, **settings):
            raise AssertionError("the block must not be entered")
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": -1}, "alpha: must be a number from 0 to 1e+09, not -1"),
        ({"alpah": 1}, "'alpah': is not a K-LoRA setting"),
        ({"method": "best"}, "method: must be one of"),
        ({"scale": "s*", "alpha": 0}, "alpha: must be above 0 with scale s*"),
        ({"seed": 1.5}, "seed: must be a whole number, not 1.5"),
        ({"seed": True}, "seed: must be a whole number"),
    ],
)
def test_settings(settings: dict, sentence: str, make: Callable, files: Callable) -> None:
    assert refused(make("sd15"), *files("sd15", text=True), **settings).startswith(sentence)


def test_files(make: Callable, files: Callable, tmp_path: Path) -> None:
    pipe, (content, style) = make("sd15"), files("sd15", text=True)
    assert refused(pipe, tmp_path / "none.safetensors", style) == "content: 'none' does not exist"
    both = refused(pipe, tmp_path / "none.safetensors", str(tmp_path / "other.safetensors"))
    assert both == "content: 'none' does not exist; style: 'other' does not exist"
    assert refused(pipe, content, tmp_path / "old.ckpt").startswith("style: 'old' is a .ckpt file, which may run code")
    assert refused(pipe, content, content) == "style: must be another LoRA than content, both are 'subject'"
    assert refused(pipe, content, None) == "style: must be the path of a .safetensors file, not None"
    (tmp_path / "half.safetensors").write_bytes(content.read_bytes()[:5000])
    assert "truncated" in refused(pipe, content, tmp_path / "half.safetensors")
    assert refused(pipe, content, tmp_path).startswith("style: ")


def test_another_architecture(make: Callable, files: Callable) -> None:
    assert refused(make("sd15"), *files("sdxl")).startswith("content and style: 'subject' and 'painter' are not made for")
    assert refused(make("sd15"), *files("flux")).startswith("content and style: none of the layers that both LoRAs touch")
    assert refused(make("sd15"), files("sd15")[0], files("flux")[1]).startswith("content and style: 'subject' and 'painter'")


def test_a_text_part_of_another_width(make: Callable, files: Callable, tmp_path: Path) -> None:
    content, style = files("sd15")
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    wide = {f"{layer}.lora_A.weight": torch.ones(2, 24), f"{layer}.lora_B.weight": torch.ones(24, 2)}
    save_file(load_file(content) | wide, tmp_path / "wide.safetensors")
    assert "q_proj is 24×24 in the LoRAs, 16×16 in the model" in refused(make("sd15"), tmp_path / "wide.safetensors", style)


def test_what_is_no_pipeline(files: Callable, make: Callable) -> None:
    assert "neither a unet nor a transformer" in refused("a model", *files("sd15"))
    assert "no scheduler with timesteps" in refused(SimpleNamespace(unet=make("sd15").unet), *files("sd15"))


def test_a_schedule_without_timesteps_of_training(make: Callable, files: Callable) -> None:
    pipe = make("sd15")
    pipe.scheduler = diffusers.EDMEulerScheduler()
    assert refused(pipe, *files("sd15"), progress="noise").startswith("progress: noise needs the timesteps of a training")


def test_fused_projections_of_a_unet(files: Callable) -> None:
    pipe = FAMILIES["sd15"]()
    pipe.unet.fuse_qkv_projections()
    assert "call unfuse_qkv_projections() first" in refused(pipe, *files("sd15"))
