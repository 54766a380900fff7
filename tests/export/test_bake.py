"""Theorems of baking: the file, read again, does in every layer what the plan does there."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor

from klora_lib.errors import KLoraError, PairError, SettingsError
from klora_lib.export.bake import bake
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import widen
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.lora.keys import list_members
from klora_lib.rule.pairing import make_pair

from ..dialects import dialect_tensors
from ..pairs import SHAPES, as_file, random_layers
from .cases import (
    FLUX_FUSED,
    MODELS,
    ONE,
    ONE_FORMAT,
    SDXL,
    STATIC,
    W,
    as_bare_file,
    assert_same,
    draw_pair,
    expected,
    plan_pair,
    read_again,
)  # fmt: skip


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("method", STATIC)
@pytest.mark.parametrize("model", list(MODELS))
def test_a_static_method_is_one_exact_lora(model: str, method: str, form: str) -> None:
    pair = draw_pair(model)
    plan = plan_pair(pair, method=method, content_weight=0.7, style_weight=-1.2)
    baked = bake(pair, plan, plan.at(0), plan.settings.weights, form=form)
    assert_same(read_again(baked), expected(plan, plan.at(0), (0.7, -1.2)))
    assert baked.rank <= 5 and not baked.notes


@pytest.mark.parametrize("form", list(ONE_FORMAT))
def test_denoisers_with_names_in_one_format(form: str) -> None:
    """They get it if none is asked for, and are refused in the other."""
    shapes = ONE_FORMAT[form]
    pair = make_pair(as_bare_file(shapes, "subject", 0), as_bare_file(shapes, "painter", 1))
    plan = plan_pair(pair, method="direct")
    baked = bake(pair, plan, plan.at(0), ONE)
    assert baked.form == form
    assert_same(read_again(baked), expected(plan, plan.at(0), (1.0, 1.0)))
    other = {"kohya": "peft", "peft": "kohya"}[form]
    with pytest.raises(SettingsError, match=f"format: '{other}' has no names for this denoiser's layers, and '{form}' has"):
        bake(pair, plan, plan.at(0), ONE, form=other)


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_blora_is_two_blocks(form: str) -> None:
    pair = draw_pair("SDXL")
    plan = plan_pair(pair, method="blora")
    file = read_again(bake(pair, plan, plan.at(0), ONE, form=form))
    assert_same(file, expected(plan, plan.at(0), (1.0, 1.0)))
    assert len(file.modules) == 2


@pytest.mark.parametrize("moment", [0.05, 0.45, 0.95])
def test_klora_held_at_a_moment(moment: float) -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair)
    masks = plan.at(moment)
    assert_same(read_again(bake(pair, plan, masks, ONE)), expected(plan, masks, (1.0, 1.0)))
    assert not torch.equal(plan.at(0.05), plan.at(0.95)), "the plan switches"


def test_files_with_split_projections_are_fused_for_kohya() -> None:
    """q, k and v of three modules are one of the sum of their ranks."""
    files = [
        lora_file(dialect_tensors(random_layers(seed, FLUX_FUSED, 2, alpha=1.0), "diffusers-flux"), name, name)
        for seed, name in enumerate(("subject", "painter"))
    ]
    pair = make_pair(*files)
    plan = plan_pair(pair, method="direct")
    for form in ("kohya", "peft"):
        file = read_again(bake(pair, plan, plan.at(0), ONE, form=form))
        for layer, dense in expected(plan, plan.at(0), (1.0, 1.0)).items():
            if layer in file.modules:
                assert torch.allclose(file.modules[layer].dense().double(), dense, atol=1e-5)
            else:
                whole = next(each for each in file.modules if layer in list_members(each))
                row = sum(W for _ in list_members(whole)[: list_members(whole).index(layer)])
                rows = file.modules[whole].dense().double()[row : row + len(dense)]
                assert torch.allclose(rows, dense, atol=1e-5), layer


def test_alpha_is_rank_in_every_module() -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair, method="direct")
    kohya = bake(pair, plan, plan.at(0), ONE).tensors
    for key, tensor in kohya.items():
        if key.endswith(".alpha"):
            assert float(tensor) == kohya[key.replace(".alpha", ".lora_down.weight")].shape[0]
    peft = bake(pair, plan, plan.at(0), ONE, form="peft").tensors
    assert {tensor.shape[0] for key, tensor in peft.items() if ".lora_A" in key} == {5}, "its readers know one rank"
    assert not any("alpha" in key for key in peft)
    assert {tensor.shape[0] for key, tensor in kohya.items() if ".lora_down" in key} == {5}


def test_layers_of_one_lora_have_the_rank_of_the_others() -> None:
    """The columns that they do not need are zero."""
    shapes = {**SHAPES, "mid_block.attentions.0.proj_in": (12, 12)}
    pair = make_pair(as_file(random_layers(0, shapes, 2), "subject"), as_file(random_layers(1, SHAPES, 3), "painter"))
    plan = plan_pair(pair, method="direct")
    baked = bake(pair, plan, plan.at(0), ONE)
    down = baked.tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]
    assert down.shape[0] == baked.rank == 5 and not down[2:].any() and down[:2].any()
    assert_same(read_again(baked), expected(plan, plan.at(0), (1.0, 1.0)))


# --- norms, biases, text encoders ---


def test_norms_biases_and_text_encoders() -> None:
    g = torch.Generator().manual_seed(7)
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"

    def make(name: str, seed: int) -> LoraFile:
        extra = {
            "lora_unet_conv_norm_out.w_norm": torch.randn(8, generator=g),
            "lora_unet_conv_norm_out.b_norm": torch.randn(8, generator=g),
            "lora_unet_down_blocks_1_attentions_0_proj_in.diff_b": torch.randn(12, generator=g),
            f"{text}.lora_up.weight": torch.randn(6, 2, generator=g),
            f"{text}.lora_down.weight": torch.randn(2, 6, generator=g),
            f"{text}.alpha": torch.tensor(1.0),
        }
        return as_file(random_layers(seed), name, extra)

    content, style = make("subject", 0), make("painter", 1)
    pair = make_pair(content, style)
    weights = ((0.5, 1.0), (2.0, 0.25))
    plan = plan_pair(pair, method="direct", content_te_weight=0.5, style_weight=0.25, style_te_weight=2.0)
    baked = bake(pair, plan, plan.at(0), weights)
    got = read_again(baked)
    assert_same(got, expected(plan, plan.at(0), (1.0, 0.25)))

    def weigh(take: Callable[[LoraFile], Any], one: float, two: float) -> Tensor:
        return one * widen(take(content)) + two * widen(take(style))

    for take in (attrgetter("weight"), attrgetter("bias")):
        norms = [take(file.added["conv_norm_out"]) for file in (content, style, got)]
        assert torch.allclose(norms[2], norms[0] + 0.25 * norms[1], atol=1e-6)
    proj = "down_blocks.1.attentions.0.proj_in"
    bias = got.modules[proj].bias
    assert bias is not None and torch.allclose(bias, weigh(lambda file: file.modules[proj].bias, 1.0, 0.25), atol=1e-6)
    assert baked.notes == (
        "the LoRA changes biases, which AUTOMATIC1111 does not read from a LoRA's file",
        "the LoRA changes norms or biases, and diffusers refuses such a file",
    )

    def read_text(file: LoraFile) -> Tensor:
        return build_delta(text, {k.removeprefix(text + "."): v for k, v in file.text.items()}).dense()

    assert torch.allclose(read_text(got), weigh(read_text, 0.5, 2.0), atol=1e-5)
    assert not read_again(bake(pair, plan, plan.at(0), weights, with_text=False)).text
    with pytest.raises(PairError, match="norms or biases of 2 layers, .* only kohya's format has a place"):
        bake(pair, plan, plan.at(0), weights, form="peft")


def test_peft_names_of_text_encoders() -> None:
    text = "lora_te2_text_model_encoder_layers_11_mlp_fc1"
    extra = {f"{text}.lora_up.weight": torch.ones(6, 2), f"{text}.lora_down.weight": torch.ones(2, 6)}
    tensors = dialect_tensors(random_layers(0, SDXL), "kohya-compvis") | extra
    pair = make_pair(lora_file(tensors, "subject", "1"), as_file(random_layers(1, SDXL), "painter"))
    plan = plan_pair(pair, method="content")
    baked = bake(pair, plan, plan.at(0), ONE, form="peft")
    key = "text_encoder_2.text_model.encoder.layers.11.mlp.fc1.lora_B.weight"
    assert torch.equal(baked.tensors[key] @ baked.tensors[key.replace("lora_B", "lora_A")], torch.full((6, 6), 2.0))


# --- what cannot be baked ---


@pytest.mark.parametrize("words", [
    {"lora_up.weight": (12, 2), "lora_down.weight": (2, 12), "dora_scale": (12, 1)},
    {"oft_blocks": (3, 4, 4)},
])  # fmt: skip
def test_what_depends_on_the_model_is_refused(words: dict[str, tuple[int, ...]]) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    dora = lora_file({f"{layer}.{word}": torch.ones(shape) for word, shape in words.items()}, "turner", "1")
    pair = make_pair(dora, as_file(random_layers(0), "painter"))
    plan = plan_pair(make_pair(as_file(random_layers(1), "other"), as_file(random_layers(0), "painter")), method="direct")
    with pytest.raises(PairError, match="content: 'turner' is a DoRA, GLoRA, OFT or IA3 in .*attn1.to_q: what it changes"):
        bake(pair, plan, plan.at(0), ONE)


def test_nothing_left_is_refused() -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair, method="content")
    with pytest.raises(PairError, match="nothing is left to save"):
        bake(pair, plan, plan.at(0), ((0.0, 0.0), (1.0, 1.0)))


@pytest.mark.parametrize("layer", ["blocks.0.self_attn.q", "layers.0.attention.to_q", "double_stream_blocks.0.block.q"])
def test_a_denoiser_without_written_names_is_refused(layer: str) -> None:
    shapes = {"lora_A": (2, 8), "lora_B": (8, 2)}
    tensors = {f"diffusion_model.{layer}.{word}.weight": torch.randn(shape) for word, shape in shapes.items()}
    pair = make_pair(lora_file(tensors, "a", "1"), lora_file({k: v + 1 for k, v in tensors.items()}, "b", "2"))
    plan = plan_pair(pair, method="direct")
    with pytest.raises(KLoraError, match="only layers of SD1.5, SD2, SDXL, SD3, Flux and Qwen-Image are saved"):
        bake(pair, plan, plan.at(0), ONE)
