"""Theorems of norms, biases and text encoders: no module that a WebUI does not know, nothing joined that differs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klora_lib.errors import PairError
from klora_lib.export.bake import bake
from klora_lib.lora.file import lora_file
from klora_lib.rule.pairing import Pair, make_pair

from ..dialects import dialect_tensors
from ..pairs import SHAPES, as_file, random_layers
from .cases import FLUX_FUSED, ONE, assert_same, expected, plan_pair, read_again

PROJ = "down_blocks.1.attentions.0.proj_in"
KEY = "lora_unet_down_blocks_1_attentions_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def add(extra: dict[str, Tensor], other: dict[str, Tensor] | None = None) -> Pair:
    """A pair of which content, and style if ``other`` is given, has further tensors."""
    return make_pair(as_file(random_layers(0), "subject", extra), as_file(random_layers(1), "painter", other))


def bake_direct(pair: Pair) -> dict[str, Tensor]:
    plan = plan_pair(pair, method="direct")
    return dict(bake(pair, plan, plan.at(0), ONE).tensors)


@pytest.mark.parametrize("words", [("w_norm",), ("b_norm",), ("diff_b",)])
def test_a_norm_has_both_words(words: tuple[str, ...]) -> None:
    """AUTOMATIC1111 refuses a whole file for a module with one of them, and for a bias alone."""
    got = bake_direct(add({f"lora_unet_conv_norm_out.{word}": torch.ones(8) for word in words}))
    found = {key.rpartition(".")[2]: tensor for key, tensor in got.items() if "conv_norm_out" in key}
    assert found.keys() == {"w_norm", "b_norm"}
    assert [bool(found[word].any()) for word in ("w_norm", "b_norm")] == ["w_norm" in words, "w_norm" not in words]


def test_a_bias_beside_a_layer_of_zeros_has_a_module() -> None:
    tensors = dialect_tensors(random_layers(0), "kohya-diffusers") | {f"{KEY}.diff_b": torch.ones(12)}
    tensors[f"{KEY}.lora_up.weight"].zero_()
    pair = make_pair(lora_file(tensors, "subject", "1"), as_file(random_layers(1), "painter"))
    plan = plan_pair(pair, method="content")
    baked = bake(pair, plan, plan.at(0), ONE)
    shapes = {key.removeprefix(KEY): tuple(tensor.shape) for key, tensor in baked.tensors.items() if key.startswith(KEY)}
    assert shapes == {".lora_up.weight": (12, 1), ".lora_down.weight": (1, 12), ".alpha": (), ".diff_b": (12,)}
    assert torch.equal(read_again(baked).modules[PROJ].bias, torch.ones(12))


def test_a_bias_of_which_nothing_else_is_known_is_told() -> None:
    shapes = {layer: shape for layer, shape in SHAPES.items() if layer != PROJ}
    content = as_file(random_layers(0, shapes), "subject", {f"{KEY}.diff_b": torch.ones(12)})
    pair = make_pair(content, as_file(random_layers(1, shapes), "painter"))
    plan = plan_pair(pair, method="direct")
    told = f"AUTOMATIC1111 refuses the file for a bias of a layer of which nothing else is known, {KEY}"
    assert told in bake(pair, plan, plan.at(0), ONE).notes


# --- text encoders ---


def test_text_encoders_of_two_sizes_are_refused() -> None:
    one, two = (
        {f"{TEXT}.lora_up.weight": torch.ones(rows, 2), f"{TEXT}.lora_down.weight": torch.ones(2, columns)}
        for rows, columns in ((16, 8), (20, 12))
    )
    with pytest.raises(PairError, match=f"the two files are for different text encoders: {TEXT} is 16×8 and 20×12"):
        bake_direct(add(one, two))


@pytest.mark.parametrize("words", [("w_norm",), ("w_norm", "b_norm")])
def test_a_text_encoders_norm_is_refused(words: tuple[str, ...]) -> None:
    module = "lora_te_text_model_encoder_layers_0_layer_norm1"
    with pytest.raises(PairError, match=f"content: 'subject' has a norm or bias in {module}"):
        bake_direct(add({f"{module}.{word}": torch.ones(8) for word in words}))


def test_a_t5_makes_the_format_kohyas() -> None:
    text = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    extra = {f"{text}.lora_up.weight": torch.ones(6, 2), f"{text}.lora_down.weight": torch.ones(2, 6)}
    files = [
        lora_file(dialect_tensors(random_layers(seed, FLUX_FUSED), "kohya-flux") | extra, name, name)
        for seed, name in enumerate(("subject", "painter"))
    ]
    pair = make_pair(*files)
    plan = plan_pair(pair, method="direct")
    baked = bake(pair, plan, plan.at(0), ONE)
    assert baked.form == "kohya" and f"{text}.lora_up.weight" in baked.tensors
    assert_same(read_again(baked), expected(plan, plan.at(0), (1.0, 1.0)))
    assert bake(pair, plan, plan.at(0), ONE, with_text=False).form == "kohya", "as the first file of a schedule"
    with pytest.raises(PairError, match=f"the text encoder's layer {text} has a name in kohya's format alone"):
        bake(pair, plan, plan.at(0), ONE, form="peft")


def test_what_does_not_act_tells_the_family_too() -> None:
    """The content has no single block, by which Flux is known; the style has."""
    double = {layer: shape for layer, shape in FLUX_FUSED.items() if not layer.startswith("single_")}
    content = lora_file(dialect_tensors(random_layers(0, double), "kohya-flux"), "subject", "1")
    style = lora_file(dialect_tensors(random_layers(1, FLUX_FUSED), "kohya-flux"), "painter", "2")
    pair = make_pair(content, style)
    plan = plan_pair(pair, method="content")
    assert "lora_unet_double_blocks_1_img_attn_qkv.alpha" in bake(pair, plan, plan.at(0), ONE, form="kohya").tensors
