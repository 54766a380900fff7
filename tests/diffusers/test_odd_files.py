"""Files that two trainers' habits make odd, drawn by a pipeline: nothing is lost, and nothing fails without a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from klora_lib.diffusers import klora

from .pipes import FAMILIES, image

X = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
Y = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.0.self_attn.k_proj"


def flat(path: str, prefix: str = "lora_unet") -> str:
    return f"{prefix}_{path.replace('.', '_')}"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def low_rank(path: str, outputs: int, inputs: int, seed: int, prefix: str = "lora_unet") -> dict[str, Tensor]:
    stem = flat(path, prefix)
    up, down = rand(outputs, 2, seed=seed), rand(2, inputs, seed=seed + 1)
    return {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", ["lora", "full", "ia3"])
def test_two_files_change_one_bias(tmp_path: Path, kind: str, engine: str) -> None:
    """One with the layer's weight, the other alone: the lone one stays at every step, whatever is chosen."""
    pipe = FAMILIES["sd15"]()
    layer, other = pipe.unet.get_submodule(X), pipe.unet.get_submodule(Y)
    n, m = len(layer.weight), len(other.weight)
    weight, bias, lone = layer.weight.detach().clone(), layer.bias.detach().clone(), rand(n, seed=9)
    factor = rand(n, 1, seed=5)
    content: dict[str, Tensor] = {
        "lora": low_rank(X, n, n, 1) | {f"{flat(X)}.lora_up.bias": rand(n, seed=3)},
        "full": {f"{flat(X)}.diff": rand(n, n, seed=4), f"{flat(X)}.diff_b": rand(n, seed=3)},
        "ia3": {f"{X}.ia3_l": 1 + factor},
    }[kind]
    change = {
        "lora": lambda: (content[f"{flat(X)}.lora_up.weight"] @ content[f"{flat(X)}.lora_down.weight"], rand(n, seed=3)),
        "full": lambda: (rand(n, n, seed=4), rand(n, seed=3)),
        "ia3": lambda: (factor * weight, factor[:, 0] * bias),
    }[kind]()
    save_file(content | low_rank(Y, m, m, 6), tmp_path / "c.safetensors")
    save_file(low_rank(Y, m, m, 7) | {f"{flat(X)}.diff_b": lone}, tmp_path / "s.safetensors")
    seen: list[tuple[Tensor, Tensor]] = []
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def watch(*_: object) -> None:
        """Behind our own hook, which is there from the first choice on."""
        while hooks:
            hooks.pop().remove()
        hooks.append(layer.register_forward_hook(lambda _, args, output: seen.append((args[0].clone(), output.clone()))))

    options = {"method": "switch", "switch_every": 1, "engine": engine, "callback": watch}
    with klora(pipe, tmp_path / "c.safetensors", tmp_path / "s.safetensors", **options) as run:
        image(pipe, steps=4, guidance_scale=1.0)
    hooks.pop().remove()
    table = run.table()[[unit.name for unit in run.passes[0].plan.units].index(X)]
    assert len(seen) == 4 and table.tolist() == [1, 0, 1, 0]
    for mask, (x, output) in zip(table.tolist(), seen):
        wanted = x @ (weight + mask * change[0]).T + bias + mask * change[1] + lone
        assert torch.allclose(output, wanted, atol=1e-5)
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)


@pytest.mark.parametrize("kind", ["ia3", "oft", "fp8"])
def test_text_encoder_parts_of_every_type(tmp_path: Path, files: Callable, kind: str) -> None:
    """Its weight in the text encoder is what the type makes of it, while the block is open."""
    pipe = FAMILIES["sd15"]()
    layer = pipe.text_encoder.get_submodule(TEXT)
    n = len(layer.weight)
    before = layer.weight.detach().clone()
    stem = flat(TEXT, "lora_te")
    part: dict[str, Tensor] = {
        "ia3": {f"{stem}.weight": torch.full((n, 1), 0.3), f"{stem}.on_input": torch.tensor(False)},
        "oft": {f"{stem}.oft_blocks": rand(2, n // 2, n // 2), f"{stem}.alpha": torch.tensor(100.0)},
        "fp8": {key: t.to(torch.float8_e4m3fn) for key, t in low_rank(TEXT, n, layer.weight.shape[1], 2, "lora_te").items()},
    }[kind]
    save_file(low_rank(X, len(pipe.unet.get_submodule(X).weight), len(pipe.unet.get_submodule(X).weight), 3) | part,
              tmp_path / "c.safetensors")  # fmt: skip
    with klora(pipe, tmp_path / "c.safetensors", files("sd15")[1], style_te_weight=0):
        during = layer.weight.detach().clone()
    if kind == "ia3":
        assert torch.allclose(during, before * 1.3, atol=1e-6)
    elif kind == "oft":
        assert torch.allclose(during.T @ during, before.T @ before, atol=1e-5)
        assert not torch.allclose(during, before, atol=1e-2)
    else:
        up, down = (part[f"{stem}.lora_{word}.weight"].float() for word in ("up", "down"))
        assert torch.allclose(during, before + up @ down, atol=1e-5)
    assert torch.equal(layer.weight, before)
