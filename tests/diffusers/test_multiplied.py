"""OFT, BOFT and IA3 on a pipeline: the extremes are the weights multiplied by hand, the choice is by what they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from klora_lib.diffusers import klora
from klora_lib.errors import PairError

from ..dialects import write_dialect
from .loras import differing, layers_of, shapes, snapshot
from .pipes import FAMILIES, image
from .reference import dense

CLOSE = dict(atol=2e-3, rtol=2e-4)


def rotations(model: nn.Module, only: str, size: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer → (what kohya stores, the whole R), two blocks of its outputs."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (rows, *_) in shapes(model).items():
        if only in name and rows % 2 == 0:
            g = torch.Generator().manual_seed(len(name) + rows)
            stored = torch.randn(2, rows // 2, rows // 2, generator=g) * size
            q, eye = (stored - stored.transpose(1, 2)).double(), torch.eye(rows // 2).double()
            out[name] = stored, torch.block_diag(*((eye + q) @ torch.linalg.inv(eye - q)))
    return out


@pytest.fixture
def oft(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file for every layer of the SD1.5 pipeline, and R by layer."""
    found = rotations(FAMILIES["sd15"]().unet, "", 0.1)
    save_file(
        {f"oft_unet_{name.replace('.', '_')}.oft_blocks": stored for name, (stored, _) in found.items()},
        tmp_path / "turner.safetensors",
    )
    return tmp_path / "turner.safetensors", {name: r for name, (_, r) in found.items()}


@torch.no_grad()
def turned(weight: Tensor, r: Tensor) -> Tensor:
    return (r.T @ weight.flatten(1).double()).reshape(weight.shape).to(weight.dtype)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_the_extremes(engine: str, make: Callable, files: Callable, oft: tuple[Path, dict[str, Tensor]]) -> None:
    other, pipe, style = FAMILIES["sd15"](), make("sd15"), files("sd15")[1]
    for name, r in oft[1].items():
        layer = other.unet.get_submodule(name)
        layer.weight.data = turned(layer.weight.data, r)
    expected, before = image(other, steps=3), snapshot(pipe)
    assert not torch.allclose(image(pipe, steps=3), expected, atol=0.05)
    with klora(pipe, oft[0], style, method="content", engine=engine):
        assert torch.allclose(image(pipe, steps=3), expected, **CLOSE)
    with klora(pipe, style, oft[0], method="style", engine=engine):
        assert torch.allclose(image(pipe, steps=3), expected, **CLOSE)
    assert differing(before, snapshot(pipe)) == []


def test_the_choice_is_by_the_change_of_the_models_weights(
    make: Callable, files: Callable, oft: tuple[Path, dict[str, Tensor]]
) -> None:
    pipe, style = make("sd15"), files("sd15")[1]
    with klora(pipe, oft[0], style, beta=0.2) as run:
        image(pipe, steps=5)
    changes = {}
    for name, r in oft[1].items():
        weight = pipe.unet.get_submodule(name).weight.detach()
        changes[name] = (turned(weight, r) - weight).flatten(1).abs()
    theirs = {name: change.abs() for name, (change, _) in dense(style, "unet").items()}
    shared = [name for name in changes if name in theirs]
    gamma = sum(float(changes[name].sum()) for name in shared) / sum(float(theirs[name].sum()) for name in shared)
    assert run.passes[0].plan.gamma == pytest.approx(gamma, rel=1e-4)
    units, table = [unit.name for unit in run.passes[0].plan.units], run.table()
    for name in shared:
        k = min(3 * changes[name].shape[0] // 2, changes[name].numel())
        sums = [float(x[name].flatten().sort(descending=True).values[:k].sum()) for x in (changes, theirs)]
        row = table[units.index(name)].tolist()
        assert row == [1 if sums[0] >= gamma * (1.5 * t / 5 + 0.2) * sums[1] else 2 for t in range(5)], name
    assert {1, 2} <= set(table.flatten().tolist())


def test_another_models_is_refused_before_anything_is_made_of_it(make: Callable, files: Callable, tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"oft_unet_{layer.replace('.', '_')}.oft_blocks": torch.zeros(5, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(PairError, match="to_q is 15×16 in the LoRAs, 16×16 in the model|are made for different models"):
        with klora(make("sd15"), tmp_path / "other.safetensors", files("sd15")[1]):
            raise AssertionError("the block must not be entered")


def test_kohyas_oft_of_flux_on_split_projections(make: Callable, tmp_path: Path) -> None:
    pipe, other = make("flux"), FAMILIES["flux"]()
    names = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    stored = [torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(i)) * 0.2 for i in range(3)]
    key = "oft_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{key}.oft_blocks.{i}": t for i, t in enumerate(stored)} | {f"{key}.alpha": torch.tensor(100.0)},
        tmp_path / "oft.safetensors",
    )
    write_dialect(layers_of(pipe, 2, 3), "diffusers-flux", tmp_path / "style.safetensors")
    for name, blocks in zip(names, stored):
        q, eye = (blocks - blocks.transpose(1, 2)).double(), torch.eye(8).double()
        layer = other.transformer.get_submodule(name)
        layer.weight.data = turned(layer.weight.data, torch.block_diag(*((eye + q) @ torch.linalg.inv(eye - q))))
    expected = image(other, steps=3)
    assert not torch.allclose(image(pipe, steps=3), expected, atol=0.02)
    with klora(pipe, tmp_path / "oft.safetensors", tmp_path / "style.safetensors", method="content") as run:
        assert torch.allclose(image(pipe, steps=3), expected, **CLOSE)
    assert run.passes[0].plan.gamma > 0
