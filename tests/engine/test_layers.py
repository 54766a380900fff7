"""Theorem: every weight of a denoiser is found under its diffusers-style name, and a fused one also by its parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from klora_lib.engine.layers import list_sites
from klora_lib.engine.site import Site

from ..fakes.unet import UNet


def tree(paths: dict[str, nn.Module]) -> nn.Module:
    """A module with these submodules at these dotted paths."""
    root = nn.Module()
    for path, leaf in paths.items():
        node = root
        *parents, last = path.split(".")
        for word in parents:
            if word not in node._modules:
                node.add_module(word, nn.Module())
            node = node._modules[word]  # type: ignore[assignment]
        node.add_module(last, leaf)
    return root


def linear(out: int = 4, fan_in: int = 4) -> nn.Linear:
    return nn.Linear(fan_in, out)


T = "transformer_blocks.0"
SD15 = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.1.0.emb_layers.1": "down_blocks.0.resnets.0.time_emb_proj",
    "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
    f"input_blocks.1.1.{T}.attn1.to_q": f"down_blocks.0.attentions.0.{T}.attn1.to_q",
    f"input_blocks.2.1.{T}.attn2.to_out.0": f"down_blocks.0.attentions.1.{T}.attn2.to_out.0",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    f"input_blocks.4.1.{T}.ff.net.0.proj": f"down_blocks.1.attentions.0.{T}.ff.net.0.proj",
    f"input_blocks.8.1.{T}.ff.net.2": f"down_blocks.2.attentions.1.{T}.ff.net.2",
    "input_blocks.11.0.out_layers.3": "down_blocks.3.resnets.1.conv2",
    "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
    f"middle_block.1.{T}.attn1.to_v": f"mid_block.attentions.0.{T}.attn1.to_v",
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
    f"output_blocks.3.1.{T}.attn2.to_k": f"up_blocks.1.attentions.0.{T}.attn2.to_k",
    "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
    f"output_blocks.11.1.{T}.norm3": f"up_blocks.3.attentions.2.{T}.norm3",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
SDXL = {
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    f"input_blocks.4.1.{T}.attn1.to_q": f"down_blocks.1.attentions.0.{T}.attn1.to_q",
    "input_blocks.7.1.transformer_blocks.9.attn2.to_k": "down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k",
    "middle_block.1.transformer_blocks.4.ff.net.2": "mid_block.attentions.0.transformer_blocks.4.ff.net.2",
    "output_blocks.2.1.proj_out": "up_blocks.0.attentions.2.proj_out",
    "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.5.1.transformer_blocks.1.attn1.to_out.0": "up_blocks.1.attentions.2.transformer_blocks.1.attn1.to_out.0",
}
FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "double_blocks.3.img_attn.proj": "transformer_blocks.3.attn.to_out.0",
    "double_blocks.3.txt_attn.proj": "transformer_blocks.3.attn.to_add_out",
    "double_blocks.3.img_mlp.0": "transformer_blocks.3.ff.net.0.proj",
    "double_blocks.3.txt_mlp.2": "transformer_blocks.3.ff_context.net.2",
    "double_blocks.3.img_attn.qkv": "transformer_blocks.3.attn.to_qkv",
    "double_blocks.3.txt_attn.qkv": "transformer_blocks.3.attn.to_added_qkv",
    "single_blocks.7.linear1": "single_transformer_blocks.7.attn.to_qkv_mlp_proj",
    "single_blocks.7.linear2": "single_transformer_blocks.7.proj_out",
}
SD3 = {
    "joint_blocks.2.x_block.attn.qkv": "transformer_blocks.2.attn.to_qkv",
    "joint_blocks.2.context_block.attn.qkv": "transformer_blocks.2.attn.to_added_qkv",
    "joint_blocks.2.x_block.attn.proj": "transformer_blocks.2.attn.to_out.0",
    "joint_blocks.2.context_block.attn.proj": "transformer_blocks.2.attn.to_add_out",
    "joint_blocks.2.x_block.attn2.qkv": "transformer_blocks.2.attn2.to_qkv",
    "joint_blocks.2.x_block.mlp.fc1": "transformer_blocks.2.ff.net.0.proj",
}


@pytest.mark.parametrize("names", [SD15, SDXL, FLUX, SD3], ids=["SD1.5", "SDXL", "Flux", "SD3"])
def test_every_weight_has_its_name(names: dict[str, str]) -> None:
    leaves = {path: linear(12) if "qkv" in path or path.endswith("linear1") else linear() for path in names}
    sites = list_sites(tree(leaves))
    for path, name in names.items():
        assert sites[name] == Site(leaves[path]), path
    whole = {name for name, site in sites.items() if site.rows is None}
    assert whole == set(names.values())


@pytest.mark.parametrize(
    ("path", "stem", "parts"),
    [
        ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn", ("to_q", "to_k", "to_v")),
        ("double_blocks.0.txt_attn.qkv", "transformer_blocks.0.attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ("joint_blocks.0.x_block.attn2.qkv", "transformer_blocks.0.attn2", ("to_q", "to_k", "to_v")),
    ],
)
def test_a_fused_qkv_is_cut_into_three(path: str, stem: str, parts: tuple[str, ...]) -> None:
    module = linear(15, 5)
    sites = list_sites(tree({path: module}))
    assert [sites[f"{stem}.{p}"] for p in parts] == [Site(module, (0, 5)), Site(module, (5, 10)), Site(module, (10, 15))]
    stacked = torch.cat([sites[f"{stem}.{p}"].take_part(module.weight) for p in parts])
    assert torch.equal(stacked, module.weight)


def test_fluxs_single_stream_ends_with_the_mlp() -> None:
    """q, k and v are as tall as the layer is wide; the rest is proj_mlp."""
    module = linear(3 * 5 + 20, 5)
    sites = list_sites(tree({"single_blocks.1.linear1": module}))
    stem = "single_transformer_blocks.1"
    rows = [sites[f"{stem}.{p}"].rows for p in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert rows == [(0, 5), (5, 10), (10, 15), (15, 35)]
    assert sites[f"{stem}.proj_mlp"].shape == (20, 5)


def test_fewer_heads_for_keys_and_values() -> None:
    """Lumina 2: q is as tall as the layer is wide, k and v are a third of that each."""
    module = linear(6 + 2 + 2, 6)
    sites = list_sites(tree({"layers.0.attention.qkv": module}))
    assert [sites[f"layers.0.attention.to_{x}"].rows for x in "qkv"] == [(0, 6), (6, 8), (8, 10)]


def test_the_small_unet_loses_nothing() -> None:
    net = UNet()
    sites = list_sites(net)
    with_weight = [m for m in net.modules() if getattr(m, "weight", None) is not None]
    assert [s.module for s in sites.values()] == with_weight
    assert all(s.rows is None for s in sites.values())


def test_what_has_no_weight_is_no_site() -> None:
    tree_ = tree(
        {"input_blocks.0.0": nn.SiLU(), "input_blocks.1.0": nn.LayerNorm(4, elementwise_affine=False), "out.2": linear()}
    )
    assert list(list_sites(tree_)) == ["conv_out"]


def test_a_hosts_own_reader_reaches_every_site() -> None:
    def read(module: nn.Module) -> torch.Tensor:
        return torch.zeros(1)

    sites = list_sites(tree({"double_blocks.0.img_attn.qkv": linear(12), "img_in": linear()}), read)
    assert len(sites) == 5 and all(s.read is read for s in sites.values())
