"""Theorem: a file that says a thing twice acts as the file that says it once; one that contradicts itself is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klora_lib.errors import LoraFileError
from klora_lib.lora.deltas import Delta
from klora_lib.lora.file import LoraFile, lora_file

Tensors = dict[str, Tensor]
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
LORA = {"lora_up.weight": torch.randn(8, 2), "lora_down.weight": torch.randn(2, 8), "alpha": torch.tensor(1.0)}
KINDS: dict[str, Tensors] = {
    "LoRA": LORA,
    "DoRA": LORA | {"dora_scale": torch.rand(8, 1)},
    "LoKr": {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(2, 2)},
    "full": {"diff": torch.randn(8, 8), "diff_b": torch.randn(8)},
    "GLoRA": {w: torch.randn(*s) for w, s in (("a1.weight", (8, 2)), ("a2.weight", (2, 8)), ("b1.weight", (8, 2)),
                                              ("b2.weight", (2, 8)))},
    "norm": {"w_norm": torch.randn(8)},
}  # fmt: skip
TWO_NAMES = {
    "SDXL": ("lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in"),
    "Z-Image": ("lora_unet_layers_0_attention_out", "lora_unet_layers_0_attention_to_out_0"),
    "two programs": (f"unet.{Q}", f"lora_unet_{Q.replace('.', '_')}"),
}


def named(stem: str, parts: Tensors) -> Tensors:
    return {f"{stem}.{word}": tensor.clone() for word, tensor in parts.items()}


def refusal(tensors: Tensors) -> str:
    with pytest.raises(LoraFileError) as caught:
        lora_file(tensors, "x")
    return str(caught.value)


def same_files(one: LoraFile, other: LoraFile) -> None:
    for mine, theirs in ((one.modules, other.modules), (one.added, other.added)):
        assert list(mine) == list(theirs)
        for layer, delta in mine.items():
            same(delta, theirs[layer])


def same(one: Delta, other: Delta) -> None:
    base = torch.randn(one.shape[0], max(one.dense().shape[1], 1))
    torch.testing.assert_close(one.update(base.clone()), other.update(base.clone()))
    assert (one.rank, one.shape) == (other.rank, other.shape)
    assert (one.bias is None) == (other.bias is None)
    if one.bias is not None and other.bias is not None:
        torch.testing.assert_close(one.bias, other.bias)


# --- one module under two names ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", TWO_NAMES)
def test_equal_duplicates_are_one(names: str, kind: str) -> None:
    first, second = TWO_NAMES[names]
    twice = lora_file({**named(first, KINDS[kind]), **named(second, KINDS[kind])}, "x")
    same_files(twice, lora_file(named(first, KINDS[kind]), "x"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", TWO_NAMES)
def test_unequal_duplicates_are_refused(names: str, kind: str) -> None:
    first, second = TWO_NAMES[names]
    for word, tensor in KINDS[kind].items():
        changed = named(second, KINDS[kind] | {word: tensor * 1.5})
        said = refusal({**named(first, KINDS[kind]), **changed})
        assert f"as {first} and as {second}, and the two differ" in said or f"as {second} and as {first}" in said


def test_an_alpha_that_only_one_of_them_has_is_a_difference() -> None:
    first, second = TWO_NAMES["SDXL"]
    bare = {word: tensor for word, tensor in LORA.items() if word != "alpha"}
    assert "and the two differ" in refusal({**named(first, LORA), **named(second, bare)})


def test_two_types_of_the_same_update_are_one() -> None:
    first, second = TWO_NAMES["SDXL"]
    whole = {"diff": 0.5 * LORA["lora_up.weight"] @ LORA["lora_down.weight"]}
    file = lora_file({**named(first, LORA), **named(second, whole)}, "x")
    torch.testing.assert_close(file.modules["down_blocks.1.attentions.0.proj_in"].dense(), whole["diff"])


def test_one_module_in_pieces_under_two_names_is_one() -> None:
    first, second = TWO_NAMES["SDXL"]
    alpha = {"alpha": LORA["alpha"]}
    factors = {word: tensor for word, tensor in LORA.items() if word != "alpha"}
    same_files(lora_file({**named(first, factors), **named(second, alpha)}, "x"), lora_file(named(first, LORA), "x"))


def test_the_same_after_the_rows_are_in_the_makers_order() -> None:
    """diffusers' norm_out.linear is the makers' final_layer.adaLN_modulation.1 with its halves the other way round."""
    flux = named("transformer.transformer_blocks.0.ff.net.2", LORA)
    turned = LORA | {"lora_up.weight": LORA["lora_up.weight"].roll(4, 0)}
    diffusers = named("transformer.norm_out.linear", turned)
    makers = named("diffusion_model.final_layer.adaLN_modulation.1", LORA)
    same_files(lora_file({**flux, **diffusers, **makers}, "x"), lora_file({**flux, **makers}, "x"))
    assert "the two differ" in refusal({**flux, **named("transformer.norm_out.linear", LORA), **makers})


TE = "text_model.encoder.layers.3.self_attn.q_proj"


def test_text_encoders_under_two_names() -> None:
    denoiser = named(f"unet.{Q}", LORA)
    kohya, peft = named(f"lora_te_{TE.replace('.', '_')}", LORA), named(f"text_encoder.{TE}", LORA)
    assert set(lora_file({**denoiser, **kohya, **peft}, "x").text) == set(kohya)
    peft[f"text_encoder.{TE}.lora_up.weight"] += 1
    assert "and the two differ" in refusal({**denoiser, **kohya, **peft})


# --- a fused projection and its members ---

QKV = "layers.0.attention.to_qkv"
FUSED = "diffusion_model.layers.0.attention.qkv"
PARTS = {x: f"diffusion_model.layers.0.attention.to_{x}" for x in "qkv"}
ROWS = {"q": (0, 8), "k": (8, 12), "v": (12, 16)}  # fewer key heads, as Lumina 2 and Krea 2 have
UP, DOWN = torch.randn(16, 2), torch.randn(2, 8)
WHOLE = {"lora_up.weight": UP, "lora_down.weight": DOWN, "alpha": torch.tensor(1.0)}


def part(x: str) -> Tensors:
    first, last = ROWS[x]
    return WHOLE | {"lora_up.weight": UP[first:last]}


def zeros(x: str) -> Tensors:
    rows = ROWS[x][1] - ROWS[x][0]
    return {"lokr_w1": torch.zeros(4, 4), "lokr_w2": torch.randn(rows // 4, 2), "dora_scale": torch.rand(rows, 1) + 1}


def with_members(**members: Tensors) -> Tensors:
    out = named(FUSED, WHOLE)
    for x, parts in members.items():
        out |= named(PARTS[x], parts)
    return out


ALONE = lora_file(named(FUSED, WHOLE), "x")


@pytest.mark.parametrize("there", ["q", "k", "v", "qk", "qv", "qkv"])
def test_members_that_repeat_the_fused_rows_are_left_out(there: str) -> None:
    file = lora_file(with_members(**{x: part(x) for x in there}), "x")
    assert list(file.modules) == [QKV]
    same_files(file, ALONE)


@pytest.mark.parametrize("there", ["q", "k", "v", "qk", "qv", "qkv"])
def test_members_that_are_zero_are_left_out(there: str) -> None:
    same_files(lora_file(with_members(**{x: zeros(x) for x in there}), "x"), ALONE)


def test_a_fused_module_that_is_zero_is_left_out() -> None:
    empty = WHOLE | {"lora_up.weight": UP * 0}
    members = {name: tensor for x in "qkv" for name, tensor in named(PARTS[x], part(x)).items()}
    same_files(lora_file({**named(FUSED, empty), **members}, "x"), lora_file(members, "x"))


@pytest.mark.parametrize("wrong", "qkv")
def test_a_member_that_says_something_else_is_refused(wrong: str) -> None:
    members = {x: part(x) for x in "qkv"}
    members[wrong] = members[wrong] | {"lora_up.weight": members[wrong]["lora_up.weight"] * 1.1}
    said = refusal(with_members(**members))
    assert said == f"'x' cannot be used: {QKV} is in it whole, and differs from {QKV[:-3]}{wrong}, which is a part of it"


def test_a_bias_or_a_magnitude_of_its_own_is_something_else() -> None:
    for extra in ({"diff_b": torch.ones(8)}, {"dora_scale": torch.rand(8, 1)}):
        assert "differs from" in refusal(with_members(q=part("q") | extra))
    assert "differs from" in refusal({**named(FUSED, WHOLE), f"{PARTS['q']}.diff_b": torch.ones(8)})


def test_each_row_of_a_dora_is_compared_with_its_own_magnitude() -> None:
    magnitude = torch.rand(16, 1) + 1
    members = {x: part(x) | {"dora_scale": magnitude[slice(*ROWS[x])]} for x in "qkv"}
    tensors = with_members(**members) | {f"{FUSED}.dora_scale": magnitude}
    same_files(lora_file(tensors, "x"), lora_file(named(FUSED, WHOLE | {"dora_scale": magnitude}), "x"))
    tensors[f"{PARTS['k']}.dora_scale"] = magnitude[4:8]
    assert "differs from layers.0.attention.to_k" in refusal(tensors)


def test_a_single_block_of_flux_with_its_mlp() -> None:
    up, stem = torch.randn(44, 2), "single_blocks.7.linear1"
    fused = named(f"diffusion_model.{stem}", {"lora_up.weight": up, "lora_down.weight": DOWN})
    rows = dict(zip(range(4), torch.split(up, [8, 8, 8, 20])))
    members: Tensors = {}
    for i, part_up in rows.items():
        members |= named(f"transformer.{stem}.{i}", {"lora_up.weight": part_up, "lora_down.weight": DOWN})
    same_files(lora_file({**fused, **members}, "x"), lora_file(fused, "x"))
    members[f"transformer.{stem}.3.lora_up.weight"] = rows[3] * 2
    assert "differs from single_transformer_blocks.7.proj_mlp" in refusal({**fused, **members})
