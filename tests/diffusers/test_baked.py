"""A baked file, loaded by diffusers itself, draws what the method draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from klora_lib.cli.main import main
from klora_lib.diffusers import klora

from .pipes import FAMILIES, image

CLOSE = dict(atol=2e-3, rtol=2e-4)
# diffusers reads kohya's SDXL and Flux only in the real ones' sizes; there WebUIs check them
WRITTEN = [("sd15", "kohya"), ("sd15", "peft"), ("sdxl", "peft"), ("flux", "peft"), ("sd3", "peft")]


def bake(pair: tuple[Path, Path], out: Path, *options: str) -> None:
    assert main(["bake", *map(str, pair), "--out", str(out), *options]) == 0


def load(family: str, path: Path) -> Any:
    pipe = FAMILIES[family]()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipe


@pytest.mark.parametrize("method", ["direct", "np", "average"])
@pytest.mark.parametrize(("family", "form"), WRITTEN)
def test_a_static_method(family: str, form: str, method: str, make: Callable, files: Callable, tmp_path: Path) -> None:
    pipe, pair, out = make(family), files(family, text=True), tmp_path / "baked.safetensors"
    plain = image(pipe, steps=3)
    bake(pair, out, "--method", method, "--format", form, "--content-weight", "0.5", "--steps", "3")
    with klora(pipe, *pair, method=method, content_weight=0.5):
        wanted = image(pipe, steps=3)
    got = image(load(family, out), steps=3)
    assert not torch.allclose(got, plain, atol=0.05)
    assert torch.allclose(got, wanted, **CLOSE)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # there are several: that is the point
def test_the_program_to_paste_draws_by_segments(make: Callable, files: Callable, tmp_path: Path, capsys: Any) -> None:
    """Every step is drawn with the choice of the middle of its part; with a part for each step, and K-LoRA's own steps a
    half later, that is K-LoRA's choice half a step on."""
    pipe, pair, out = make("sd15"), files("sd15"), tmp_path / "part.safetensors"
    bake(pair, out, "--segments", "3", "--steps", "3")
    program = capsys.readouterr().out.split("in diffusers:\n")[1].replace('weights("', f'weights("{tmp_path}/')
    other = FAMILIES["sd15"]()

    def draw(prompt: str, **given: Any) -> Any:
        return type("Drawn", (), {"images": [image(other, steps=given.pop("num_inference_steps"), **given)]})

    class Pipe:
        load_lora_weights = staticmethod(other.load_lora_weights)
        set_adapters = staticmethod(other.set_adapters)
        __call__ = staticmethod(draw)

    names: dict[str, Any] = {"pipe": Pipe(), "prompt": "a dog"}
    exec("\n".join(line[2:] for line in program.splitlines()), names)
    with klora(pipe, *pair, beta=0.5 + 1.5 * 0.5 / 3):
        wanted = image(pipe, steps=3)
    assert torch.allclose(names["image"], wanted, **CLOSE)
