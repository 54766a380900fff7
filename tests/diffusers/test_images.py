"""The extremes are diffusers' own single adapters; everything between is a brute-force reference; off is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from klora_lib.diffusers import klora

from .pipes import FAMILIES, calls_of, image
from .reference import brute_force

Files = Callable[..., tuple[Path, Path]]
CLOSE = dict(atol=2e-3, rtol=2e-4)


def single(family: str, path: Path, weight: float = 1.0, **given: Any) -> torch.Tensor:
    """The image with one file loaded by diffusers' own loader."""
    pipe = FAMILIES[family]()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="one")
    pipe.set_adapters(["one"], [weight])
    return image(pipe, **given)


@pytest.mark.parametrize(("family", "engine"), [*((family, "merge") for family in FAMILIES), ("flux", "bypass")])
def test_the_extremes_are_the_single_adapters(family: str, engine: str, make: Callable, files: Files) -> None:
    pipe, (content, style) = make(family), files(family, text=True)
    plain = image(pipe, steps=3)
    weights = {"content_weight": 0.8, "style_weight": 0.7, "engine": engine, "alpha": 0}
    with klora(pipe, content, style, beta=1e-6, style_te_weight=0, **weights):
        ours = image(pipe, steps=3)
    assert torch.allclose(ours, single(family, content, 0.8, steps=3), **CLOSE)
    with klora(pipe, content, style, beta=1e6, content_te_weight=0, **weights):
        theirs = image(pipe, steps=3)
    assert torch.allclose(theirs, single(family, style, 0.7, steps=3), **CLOSE)
    assert not torch.allclose(ours, theirs, atol=0.1) and not torch.allclose(ours, plain, atol=0.1)
    assert torch.equal(image(pipe, steps=3), plain)


@pytest.mark.parametrize(
    ("family", "settings"), [*((family, {}) for family in FAMILIES), ("flux", {"alpha": 3.0, "beta": 0.1})]
)
def test_between_is_the_brute_force_reference(family: str, settings: dict, make: Callable, files: Files) -> None:
    pipe, pair = make(family), files(family, text=True)
    with klora(pipe, *pair, content_weight=0.9, style_te_weight=0.5, **settings) as run:
        ours = image(pipe, steps=6)
    other = FAMILIES[family]()
    with brute_force(other, *pair, lambda n: n / 6, **settings, weights=(0.9, 1.0), text=(0.9, 0.5)) as calls:
        theirs = image(other, steps=6)
    assert calls_of(run) == [len(calls)] == [6] and len(set(calls)) > 2
    assert torch.allclose(ours, theirs, **CLOSE)
    table = run.passes[0].plan.table(6)
    assert [f"{'NCSB'[m]}" for m in table[:, 0].tolist()].count("C") == calls[0].count("C")


@pytest.mark.parametrize("method", ["direct", "switch", "random"])
def test_both_engines_draw_the_same(method: str, make: Callable, files: Files) -> None:
    pipe, pair = make("sdxl"), files("sdxl")
    images = []
    for engine in ("merge", "bypass"):
        with klora(pipe, *pair, method=method, switch_every=2, engine=engine, seed=9):
            images.append(image(pipe))
    assert torch.allclose(*images, **CLOSE)


def test_disabled_is_the_plain_pipeline(make: Callable, files: Files) -> None:
    pipe = make("sd15")
    plain = image(pipe)
    with klora(pipe, *files("sd15"), enabled=False) as run:
        assert torch.equal(image(pipe), plain)
    assert run.passes == []


def test_the_block_tells_what_it_does(make: Callable, files: Files) -> None:
    pipe, heard = make("sd15"), []
    with klora(pipe, *files("sd15"), alpha=2, layers="attention", callback=lambda *at: heard.append(at)) as run:
        image(pipe, steps=4)
        image(pipe, steps=3)
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 3), (2, 3), (3, 3)] and calls_of(run) == [4, 3]
    assert run.infotext() == (
        "K-LoRA enabled: True, K-LoRA content: subject, K-LoRA style: painter, K-LoRA alpha: 2.0, K-LoRA layers: attention"
    )


def test_two_halves_of_a_file_are_the_file(make: Callable, files: Files, tmp_path: Path) -> None:
    """Without a common layer each layer has the one LoRA that touches it, at every step; the user is told."""
    pipe, whole = make("sdxl"), files("sdxl")[0]
    tensors = load_file(whole)
    halves = tmp_path / "content.safetensors", tmp_path / "style.safetensors"
    save_file({k: t for k, t in tensors.items() if ".attn1." in k}, halves[0])
    save_file({k: t for k, t in tensors.items() if ".attn1." not in k}, halves[1])
    with klora(pipe, *halves) as run:
        ours = image(pipe, steps=3)
    assert torch.allclose(ours, single("sdxl", whole, steps=3), **CLOSE)
    assert len(run.notes) == 1 and "no denoiser layer in common" in run.notes[0]
