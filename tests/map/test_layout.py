"""Theorems of the rows' order: as the model runs its layers, in groups that are named by block."""

from __future__ import annotations

import random

import pytest

from klora_lib.map.layout import arrange, name_block

from ..bench.plan import shapes

UNET = [
    "conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.attentions.0.proj_in", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.10.attn1.to_q", "down_blocks.1.attentions.0.proj_out",
    "down_blocks.1.resnets.1.conv1", "down_blocks.1.attentions.1.proj_in", "down_blocks.1.downsamplers.0.conv",
    "mid_block.resnets.0.conv1", "mid_block.attentions.0.proj_in", "mid_block.resnets.1.conv1",
    "up_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv", "conv_out",
]  # fmt: skip
FLUX = [
    "x_embedder", "context_embedder", "transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn.to_qkv",
    "transformer_blocks.2.attn.to_qkv", "transformer_blocks.10.attn.to_qkv",
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj", "single_transformer_blocks.0.proj_out", "proj_out",
]  # fmt: skip
OTHER = ["layers.0.attention.to_qkv", "layers.0.feed_forward.w1", "layers.1.attention.to_qkv", "strange.x", "final_layer.x"]


@pytest.mark.parametrize("names", [UNET, FLUX], ids=["UNet", "Flux"])
def test_layers_are_in_the_models_order(names: list[str]) -> None:
    mixed = random.Random(3).sample(names, len(names))
    assert [mixed[i] for i in arrange(mixed).order] == names


def test_groups_have_the_blocks_names() -> None:
    assert [group.title for group in arrange(UNET).groups] == [
        "conv in", "time embedding", "down 0", "down 1", "middle", "up 0", "conv out",
    ]  # fmt: skip
    titles = [group.title for group in arrange(FLUX).groups]
    assert titles == ["x embedder", "context embedder", "double 0", "double 2", "double 10", "single 0", "proj out"]
    assert [group.title for group in arrange(list(shapes())).groups] == ["down 1", "down 2", "middle", "up 0", "up 1"]
    assert name_block("transformer_blocks.3") == "block 3" and name_block("noise_refiner.1") == "noise refiner 1"


@pytest.mark.parametrize("names", [UNET, FLUX, OTHER, list(shapes()), [], ["a.b", "a.b.c"], ["²", "1", "layers.²"]])
def test_groups_cover_every_row_once(names: list[str]) -> None:
    found = arrange(names)
    assert sorted(found.order) == list(range(len(names)))
    edges = [0, *(group.stop for group in found.groups)]
    assert [group.start for group in found.groups] == edges[:-1] and edges[-1] == len(names)
