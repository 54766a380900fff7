"""Theorem: a key of any dialect leads to the module, and the rows of it, that its architecture means by it.

Module paths and the proportions of shapes are those of the makers' models, which Forge and its relatives load.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.layers import list_sites
from klora_lib.lora.architectures import make_canonical
from klora_lib.lora.deltas import Delta, Lora
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.lora.keys import is_attention
from klora_lib.lora.rows import swap_halves as turned_over

from ..engine.test_layers import tree

Shape = tuple[int, ...]
T = "transformer_blocks.0"
SD1 = {f"input_blocks.4.1.{T}.attn1.to_q": (4, 4), "input_blocks.4.1.proj_in": (4, 4, 1, 1), "out.2": (2, 4, 3, 3)}
SD2 = {f"input_blocks.4.1.{T}.attn2.to_k": (4, 6), "input_blocks.4.1.proj_in": (4, 4), "label_emb.0.0": (4, 5)}
SDXL = {
    "input_blocks.7.1.transformer_blocks.9.attn2.to_out.0": (4, 4),
    "label_emb.0.2": (4, 4),
    "middle_block.1.proj_out": (4, 4),
}
FLUX = {
    "img_in": (4, 6), "double_blocks.3.img_attn.qkv": (12, 4), "double_blocks.3.txt_attn.qkv": (12, 4),
    "double_blocks.3.img_attn.proj": (4, 4), "double_blocks.3.txt_attn.proj": (4, 4), "double_blocks.3.img_mlp.0": (16, 4),
    "double_blocks.3.txt_mod.lin": (24, 4), "single_blocks.7.linear1": (28, 4), "single_blocks.7.linear2": (4, 20),
    "single_blocks.7.modulation.lin": (12, 4), "final_layer.adaLN_modulation.1": (8, 4), "final_layer.linear": (6, 4),
}  # fmt: skip
CHROMA = {
    "double_blocks.3.img_attn.qkv": (12, 4), "single_blocks.7.linear1": (28, 4),
    "distilled_guidance_layer.in_proj": (4, 6), "distilled_guidance_layer.layers.2.in_layer": (4, 4),
    "distilled_guidance_layer.layers.2.out_layer": (4, 4),
}  # fmt: skip
SD35 = {
    "x_embedder.proj": (4, 2, 2, 2),
    "joint_blocks.5.x_block.attn2.qkv": (12, 4), "joint_blocks.5.x_block.attn2.proj": (4, 4),
    "joint_blocks.5.context_block.attn.proj": (4, 4), "joint_blocks.5.context_block.mlp.fc1": (16, 4),
    "joint_blocks.5.x_block.adaLN_modulation.1": (36, 4), "joint_blocks.5.context_block.adaLN_modulation.1": (24, 4),
    "joint_blocks.23.context_block.attn.qkv": (12, 4), "joint_blocks.23.context_block.adaLN_modulation.1": (8, 4),
    "final_layer.adaLN_modulation.1": (8, 4),
}  # fmt: skip

KOHYA = ".lora_up.weight", ".lora_down.weight"
PEFT = ".lora_B.weight", ".lora_A.weight"
BOOTH = ".lora.up.weight", ".lora.down.weight"
OLD = "_lora.up.weight", "_lora.down.weight"
XLABS = ".up.weight", ".down.weight"

Q = f"input_blocks.4.1.{T}.attn1.to_q"
KEYS = [  # the model, what a file calls the layer, the words after it, the module and the rows it means
    (SD1, f"lora_unet_down_blocks_1_attentions_0_{T.replace('.', '_')}_attn1_to_q", KOHYA, Q, None),
    (SD1, f"unet.down_blocks.1.attentions.0.{T}.attn1.to_q", PEFT, Q, None),
    (SD1, f"unet.unet.down_blocks.1.attentions.0.{T}.attn1.to_q", BOOTH, Q, None),
    (SD1, f"down_blocks.1.attentions.0.{T}.attn1.processor.to_q", OLD, Q, None),
    (SD1, "unet.down_blocks.1.attentions.0.proj_in", PEFT, "input_blocks.4.1.proj_in", None),
    (SD1, "lora_unet_conv_out", KOHYA, "out.2", None),
    (SD2, f"unet.down_blocks.1.attentions.0.{T}.attn2.to_k", PEFT, f"input_blocks.4.1.{T}.attn2.to_k", None),
    (SD2, "unet.down_blocks.1.attentions.0.proj_in", PEFT, "input_blocks.4.1.proj_in", None),
    (SD2, "lora_unet_class_embedding_linear_1", KOHYA, "label_emb.0.0", None),
    (SD2, "class_embedding.linear_1", KOHYA, "label_emb.0.0", None),
    (SDXL, "unet.unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_out.0", BOOTH,
     "input_blocks.7.1.transformer_blocks.9.attn2.to_out.0", None),
    (SDXL, "unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_out.0", PEFT,
     "input_blocks.7.1.transformer_blocks.9.attn2.to_out.0", None),
    (SDXL, "lora_unet_add_embedding_linear_2", KOHYA, "label_emb.0.2", None),
    (SDXL, "unet.mid_block.attentions.0.proj_out", PEFT, "middle_block.1.proj_out", None),
    (FLUX, "lora_unet_double_blocks_3_img_attn_qkv", KOHYA, "double_blocks.3.img_attn.qkv", None),
    (FLUX, "transformer.transformer_blocks.3.attn.to_q", PEFT, "double_blocks.3.img_attn.qkv", (0, 4)),
    (FLUX, "lora_transformer_transformer_blocks_3_attn_to_k", KOHYA, "double_blocks.3.img_attn.qkv", (4, 8)),
    (FLUX, "lycoris_transformer_blocks_3_attn_add_v_proj", KOHYA, "double_blocks.3.txt_attn.qkv", (8, 12)),
    (FLUX, "transformer.transformer_blocks.3.attn.to_add_out", PEFT, "double_blocks.3.txt_attn.proj", None),
    (FLUX, "transformer.transformer_blocks.3.norm1_context.linear", PEFT, "double_blocks.3.txt_mod.lin", None),
    (FLUX, "transformer.double_blocks.3.img_attn.qkv.2", KOHYA, "double_blocks.3.img_attn.qkv", (8, 12)),
    (FLUX, "transformer.double_blocks.3.txt_attn.qkv.0", KOHYA, "double_blocks.3.txt_attn.qkv", (0, 4)),
    (FLUX, "transformer.single_transformer_blocks.7.attn.to_v", PEFT, "single_blocks.7.linear1", (8, 12)),
    (FLUX, "lora_transformer_single_transformer_blocks_7_proj_mlp", KOHYA, "single_blocks.7.linear1", (12, 28)),
    (FLUX, "transformer.single_blocks.7.linear1.1", KOHYA, "single_blocks.7.linear1", (4, 8)),
    (FLUX, "transformer.single_blocks.7.linear1.3", KOHYA, "single_blocks.7.linear1", (12, 28)),
    (FLUX, "transformer.single_transformer_blocks.7.proj_out", PEFT, "single_blocks.7.linear2", None),
    (FLUX, "diffusion_model.double_blocks.3.img_mlp.0", PEFT, "double_blocks.3.img_mlp.0", None),
    (FLUX, "double_blocks.3.processor.qkv_lora1", XLABS, "double_blocks.3.img_attn.qkv", None),
    (FLUX, "double_blocks.3.processor.proj_lora2", XLABS, "double_blocks.3.txt_attn.proj", None),
    (FLUX, "diffusion_model.single_blocks.7.processor.proj_lora", XLABS, "single_blocks.7.linear2", None),
    (FLUX, "transformer.img_in.proj", KOHYA, "img_in", None),
    (FLUX, "img_in", PEFT, "img_in", None),
    (FLUX, "transformer.proj_out", PEFT, "final_layer.linear", None),
    (CHROMA, "lora_unet_distilled_guidance_layer_layers_2_in_layer", KOHYA,
     "distilled_guidance_layer.layers.2.in_layer", None),
    (CHROMA, "transformer.distilled_guidance_layer.layers.2.linear_1", PEFT,
     "distilled_guidance_layer.layers.2.in_layer", None),
    (CHROMA, "lora_transformer_distilled_guidance_layer_layers_2_linear_2", KOHYA,
     "distilled_guidance_layer.layers.2.out_layer", None),
    (CHROMA, "distilled_guidance_layer.in_proj", PEFT, "distilled_guidance_layer.in_proj", None),
    (CHROMA, "transformer.transformer_blocks.3.attn.to_v", PEFT, "double_blocks.3.img_attn.qkv", (8, 12)),
    (CHROMA, "lora_unet_single_blocks_7_linear1", KOHYA, "single_blocks.7.linear1", None),
    (SD35, "lora_unet_joint_blocks_23_context_block_attn_qkv", KOHYA, "joint_blocks.23.context_block.attn.qkv", None),
    (SD35, "transformer.transformer_blocks.23.attn.add_k_proj", PEFT, "joint_blocks.23.context_block.attn.qkv", (4, 8)),
    (SD35, "transformer.transformer_blocks.5.attn2.to_q", PEFT, "joint_blocks.5.x_block.attn2.qkv", (0, 4)),
    (SD35, "lora_transformer_transformer_blocks_5_attn2_to_out_0", KOHYA, "joint_blocks.5.x_block.attn2.proj", None),
    (SD35, "transformer.joint_blocks.5.x_block.attn2.qkv.1", KOHYA, "joint_blocks.5.x_block.attn2.qkv", (4, 8)),
    (SD35, "transformer.transformer_blocks.5.ff_context.net.0.proj", PEFT, "joint_blocks.5.context_block.mlp.fc1", None),
    (SD35, "transformer.transformer_blocks.5.norm1.linear", PEFT, "joint_blocks.5.x_block.adaLN_modulation.1", None),
    (SD35, "transformer.pos_embed.proj", PEFT, "x_embedder.proj", None),
]  # fmt: skip


def module(shape: Shape) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2:])


def file_of(stem: str, words: tuple[str, str], shape: Shape, **extra: Tensor) -> LoraFile:
    """A LoRA of rank 2 on one layer."""
    generator = torch.Generator().manual_seed(len(stem))
    ups = torch.randn(shape[0], 2, *(1 for _ in shape[2:]), generator=generator)
    downs = torch.randn(2, *shape[1:], generator=generator)
    return lora_file({stem + words[0]: ups, stem + words[1]: downs, **extra}, "a")


@pytest.mark.parametrize(("model", "stem", "words", "path", "rows"), KEYS, ids=[stem for _, stem, *_ in KEYS])
def test_a_key_means_this_module_and_these_rows(
    model: dict[str, Shape], stem: str, words: tuple[str, str], path: str, rows: tuple[int, int] | None
) -> None:
    modules = {name: module(shape) for name, shape in model.items()}
    sites = list_sites(tree(modules))
    out, *columns = model[path]
    height = out if rows is None else rows[1] - rows[0]
    file = file_of(stem, words, (height, *columns))
    assert (file.unknown, len(file.modules)) == ((), 1)
    [(layer, delta)] = file.modules.items()
    assert sites[layer].module is modules[path]
    assert sites[layer].rows == rows
    assert sites[layer].shape == delta.shape


# --- rows in another order ---


def swapped(tensor: Tensor) -> Tensor:
    half = len(tensor) // 2
    return torch.cat([tensor[half:], tensor[:half]])


def only_delta(file: LoraFile, layer: str) -> Delta:
    return {**file.modules, **file.added}[layer]


FEED = "transformer.transformer_blocks.0.ff.net.2"  # SD3's and Flux's; Qwen-Image says img_mlp
EXTRA = {FEED + end: torch.ones(2, 2) for end in PEFT}
LAST = "final_layer.adaLN_modulation.1"
CONTEXT = "transformer_blocks.23.norm1_context.linear"


@pytest.mark.parametrize(
    ("theirs", "makers", "layer"),
    [
        ("transformer.norm_out.linear", "diffusion_model.final_layer.adaLN_modulation.1", LAST),
        ("lora_transformer_norm_out_linear", "lora_unet_final_layer_adaLN_modulation_1", LAST),
        ("transformer.transformer_blocks.23.norm1_context.linear",
         "diffusion_model.joint_blocks.23.context_block.adaLN_modulation.1", CONTEXT),
        ("lora_transformer_transformer_blocks_23_norm1_context_linear",
         "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1", CONTEXT),
    ],
)  # fmt: skip
def test_diffusers_has_scale_above_shift(theirs: str, makers: str, layer: str) -> None:
    up, down, bias, magnitude = torch.randn(8, 2), torch.randn(2, 4), torch.randn(8), torch.rand(8, 1) + 1
    parts = {".lora_up.weight": up, ".diff_b": bias, ".dora_scale": magnitude}
    turned = lora_file({theirs + end: t for end, t in parts.items()} | {theirs + ".lora_down.weight": down, **EXTRA}, "a")
    parts = {end: swapped(t) for end, t in parts.items()}
    plain = lora_file({makers + end: t for end, t in parts.items()} | {makers + ".lora_down.weight": down, **EXTRA}, "b")
    assert list(turned.modules) == list(plain.modules)
    ours, same = only_delta(turned, layer), only_delta(plain, layer)
    base = torch.randn(8, 4)
    torch.testing.assert_close(ours.dense(), same.dense())
    torch.testing.assert_close(ours.update(base), same.update(base))
    assert ours.bias is not None and same.bias is not None and torch.equal(ours.bias, same.bias)
    assert (ours.shape, ours.rank) == (same.shape, same.rank)


def test_a_bias_alone_on_it_is_added_and_turned() -> None:
    bias = torch.randn(8)
    file = lora_file({"transformer.norm_out.linear.diff_b": bias, **EXTRA}, "a")
    assert list(file.added) == [LAST]
    delta = only_delta(file, LAST)
    assert delta.bias is not None and torch.equal(delta.bias, swapped(bias))


def test_what_is_already_in_the_makers_order_stays() -> None:
    """Qwen-Image's hosts keep diffusers' order; a context norm of six parts has the same order everywhere."""
    attention = {"transformer.transformer_blocks.0.img_mlp.net.2" + end: torch.ones(2, 2) for end in PEFT}
    qwen = file_of("transformer.norm_out.linear", PEFT, (8, 4), **attention)
    assert isinstance(qwen.modules["norm_out.linear"], Lora)
    six = file_of("transformer.transformer_blocks.5.norm1_context.linear", PEFT, (24, 4), **EXTRA)
    assert isinstance(six.modules["transformer_blocks.5.norm1_context.linear"], Lora)


def test_low_rank_factors_are_turned_too() -> None:
    delta = turned_over(Lora(torch.randn(8, 2), torch.randn(2, 4), 0.5, (8, 4)))
    up, down, scale = delta.factors() or pytest.fail("a LoRA has two factors")
    torch.testing.assert_close(scale * up @ down, delta.dense())
    assert delta.bias is None


# --- attention ---

ATTENTION = {
    "SD1.5, SD2, SDXL": [f"input_blocks.4.1.{T}.attn{n}.{x}" for n in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")],
    "Flux, Chroma": [f"double_blocks.0.{s}_attn.{x}" for s in ("img", "txt") for x in ("qkv", "proj")]
    + ["single_blocks.0.linear1"],
    "SD3": [f"joint_blocks.0.{b}.{x}" for b in ("x_block", "context_block") for x in ("attn.qkv", "attn.proj")]
    + ["joint_blocks.0.x_block.attn2.qkv", "joint_blocks.0.x_block.attn2.proj"],
}
OTHERS = {
    "SD1.5, SD2, SDXL": ["input_blocks.4.1.proj_in", f"input_blocks.4.1.{T}.ff.net.2", "label_emb.0.0", "out.2"],
    "Flux, Chroma": ["double_blocks.0.img_mlp.0", "double_blocks.0.img_mod.lin", "single_blocks.0.linear2",
                     "single_blocks.0.modulation.lin", "img_in", "final_layer.linear", LAST,
                     "distilled_guidance_layer.layers.0.in_layer", "distilled_guidance_layer.out_proj"],
    "SD3": ["joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.context_block.adaLN_modulation.1", "context_embedder"],
}  # fmt: skip


@pytest.mark.parametrize("architecture", ATTENTION)
def test_attention_of_each_architecture(architecture: str) -> None:
    """The second projection of a Flux single block takes attention and mlp together: it is a proj_out."""
    assert [path for path in ATTENTION[architecture] if not is_attention(make_canonical(path))] == []
    assert [path for path in OTHERS[architecture] if is_attention(make_canonical(path))] == []


# --- text encoders ---


def test_onetrainers_t5_of_chroma_gets_a_name_that_a_webui_knows() -> None:
    text = {f"lora_te_encoder_block_0_layer_0_SelfAttention_q{end}": torch.ones(2, 2) for end in KOHYA}
    file = file_of("lora_transformer_transformer_blocks_0_attn_to_q", KOHYA, (4, 4), **text)
    assert sorted(file.text) == sorted(key.replace("lora_te_", "lora_te3_") for key in text)
    assert file.foreign_text
