"""The denoisers' architectures as data: what their layers are called, by their makers and by diffusers.

A layer's canonical name is diffusers' path, except where that would lose a fused projection or the makers' order of rows.
Each architecture is one entry of ARCHITECTURES; a name that no entry knows is already canonical. The compvis UNet, whose
block numbers need arithmetic, is in `unet`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .unet import translate_compvis


class Architecture(NamedTuple):
    """What tells one architecture's layers from another's.

    tops: the first words of its module paths, by which a key without any prefix is known to be the denoiser's.
    names: (pattern of the blocks, what replaces it) → other names of its layers → canonical names.
    """

    tops: str
    names: Mapping[tuple[str, str], Mapping[str, str]] = {}


def map_names(old: str, new: str) -> dict[str, str]:
    return dict(zip(old.split(), new.split(), strict=True))


EVERYWHERE = "", ""  # for layers outside the blocks
JOINT = r"(?:double_blocks|joint_blocks)\.(\d+)\.", r"transformer_blocks.\1."
SINGLE = r"single_blocks\.(\d+)\.", r"single_transformer_blocks.\1."
KREA_BLOCK = map_names(
    "attn.wq attn.wk attn.wv attn.gate attn.wo mlp.gate mlp.up mlp.down",
    "attn.to_q attn.to_k attn.to_v attn.to_gate attn.to_out.0 ff.gate ff.up ff.down",
)
WAN_ATTENTION = map_names(
    "to_q to_k to_v to_out.0 norm_q norm_k add_k_proj add_v_proj norm_added_k",
    "q k v o norm_q norm_k k_img v_img norm_k_img",
)
ANIMA_ATTENTION = map_names("q_proj k_proj v_proj output_proj q_norm k_norm", "to_q to_k to_v to_out.0 norm_q norm_k")

ARCHITECTURES: dict[str, Architecture] = {
    "UNet": Architecture(
        "down_blocks up_blocks mid_block input_blocks output_blocks middle_block conv_in conv_out conv_norm_out "
        "time_embedding add_embedding class_embedding time_embed label_emb"
    ),
    "Flux": Architecture(
        "transformer_blocks single_transformer_blocks double_blocks single_blocks x_embedder context_embedder "
        "time_text_embed norm_out proj_out img_in txt_in time_in vector_in guidance_in final_layer",
        {
            JOINT: {
                "img_attn.qkv": "attn.to_qkv",
                "img_attn.proj": "attn.to_out.0",
                "img_attn.norm.query_norm": "attn.norm_q",
                "img_attn.norm.key_norm": "attn.norm_k",
                "img_mlp.0": "ff.net.0.proj",
                "img_mlp.2": "ff.net.2",
                "img_mod.lin": "norm1.linear",
                "txt_attn.qkv": "attn.to_added_qkv",
                "txt_attn.proj": "attn.to_add_out",
                "txt_attn.norm.query_norm": "attn.norm_added_q",
                "txt_attn.norm.key_norm": "attn.norm_added_k",
                "txt_mlp.0": "ff_context.net.0.proj",
                "txt_mlp.2": "ff_context.net.2",
                "txt_mod.lin": "norm1_context.linear",
            },
            SINGLE: {
                "linear1": "attn.to_qkv_mlp_proj",
                "attn.qkv": "attn.to_qkv",
                "linear2": "proj_out",
                "modulation.lin": "norm.linear",
                "norm.query_norm": "attn.norm_q",
                "norm.key_norm": "attn.norm_k",
            },
            EVERYWHERE: {
                "img_in": "x_embedder",
                "img_in.proj": "x_embedder",  # OneTrainer's
                "txt_in": "context_embedder",
                "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
                "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
                "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
                "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
                "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
                "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
                "final_layer.linear": "proj_out",
                # final_layer.adaLN_modulation.1 keeps its name: diffusers' norm_out.linear has shift and scale swapped
            },
        },
    ),
    "Flux, DiffSynth's names": Architecture(
        "blocks",
        {
            (r"blocks\.(\d+)\.", r"transformer_blocks.\1."): {
                "attn.a_to_qkv": "attn.to_qkv",
                "attn.b_to_qkv": "attn.to_added_qkv",
                **{f"attn.a_to_{x}": f"attn.to_{x}" for x in "qkv"},
                **{f"attn.b_to_{x}": f"attn.add_{x}_proj" for x in "qkv"},
                "attn.a_to_out": "attn.to_out.0",
                "attn.b_to_out": "attn.to_add_out",
                "ff_a.0": "ff.net.0.proj",
                "ff_a.2": "ff.net.2",
                "ff_b.0": "ff_context.net.0.proj",
                "ff_b.2": "ff_context.net.2",
                "norm1_a.linear": "norm1.linear",
                "norm1_b.linear": "norm1_context.linear",
            },
            SINGLE: {
                "to_qkv_mlp": "attn.to_qkv_mlp_proj",
                **{f"a_to_{x}": f"attn.to_{x}" for x in "qkv"},
                "proj_in_besides_attn": "proj_mlp",
                "proj_out": "proj_out",
                "norm.linear": "norm.linear",
            },
        },
    ),
    "Chroma": Architecture(
        "distilled_guidance_layer",
        {
            (r"distilled_guidance_layer\.layers\.(\d+)\.", r"distilled_guidance_layer.layers.\1."): {
                "in_layer": "linear_1",
                "out_layer": "linear_2",
            },
        },
    ),
    "SD3": Architecture(
        "joint_blocks pos_embed t_embedder y_embedder",
        {
            JOINT: {
                "x_block.attn.qkv": "attn.to_qkv",
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn.ln_q": "attn.norm_q",
                "x_block.attn.ln_k": "attn.norm_k",
                "x_block.attn2.qkv": "attn2.to_qkv",
                "x_block.attn2.proj": "attn2.to_out.0",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "x_block.adaLN_modulation.1": "norm1.linear",
                "context_block.attn.qkv": "attn.to_added_qkv",
                "context_block.attn.proj": "attn.to_add_out",
                "context_block.attn.ln_q": "attn.norm_added_q",
                "context_block.attn.ln_k": "attn.norm_added_k",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
                "context_block.adaLN_modulation.1": "norm1_context.linear",
            },
            EVERYWHERE: {
                "x_embedder.proj": "pos_embed.proj",
                "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
                "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
                "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            },
        },
    ),
    "Z-Image and Lumina 2": Architecture(
        "layers noise_refiner context_refiner cap_embedder all_x_embedder all_final_layer clip_text_pooled_proj "
        "time_caption_embed",
        {
            (r"(layers|noise_refiner|context_refiner)\.(\d+)\.", r"\1.\2."): {
                "attention.qkv": "attention.to_qkv",
                "attention.out": "attention.to_out.0",
                "attention.q_norm": "attention.norm_q",
                "attention.k_norm": "attention.norm_k",
                # Lumina 2 in diffusers
                **{f"attn.{x}": f"attention.{x}" for x in ("to_q", "to_k", "to_v", "to_qkv", "to_out.0")},
                **{f"attn.{x}": f"attention.{x}" for x in ("norm_q", "norm_k")},
                **{f"feed_forward.linear_{n}": f"feed_forward.w{n}" for n in (1, 2, 3)},
                "norm1.linear": "adaLN_modulation.1",
                "norm1.norm": "attention_norm1",
                "norm1": "attention_norm1",
                "norm2": "attention_norm2",
            },
            EVERYWHERE: {
                "all_x_embedder.2-1": "x_embedder",
                "all_final_layer.2-1.linear": "proj_out",
                "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
                "time_caption_embed.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
                "time_caption_embed.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
                "time_caption_embed.caption_embedder.0": "cap_embedder.0",
                "time_caption_embed.caption_embedder.1": "cap_embedder.1",
            },
        },
    ),
    "Flux.2": Architecture(
        "double_stream_modulation_img double_stream_modulation_txt single_stream_modulation time_guidance_embed",
        {
            (r"transformer_blocks\.(\d+)\.(ff|ff_context)\.", r"transformer_blocks.\1.\2."): {
                "linear_in": "net.0.proj",
                "linear_out": "net.2",
            },
            (r"single_transformer_blocks\.(\d+)\.", r"single_transformer_blocks.\1."): {"attn.to_out": "proj_out"},
            SINGLE: {"linear1_qkv": "attn.to_qkv"},
            (r"time_guidance_embed\.(timestep|guidance)_embedder\.", r"time_text_embed.\1_embedder."): {
                "linear_1": "linear_1",
                "linear_2": "linear_2",
            },
            (r"((?:double|single)_stream_modulation\w*)\.", r"\1."): {"linear": "lin"},
        },
    ),
    "Qwen-Image": Architecture("txt_norm"),
    "HiDream": Architecture("double_stream_blocks single_stream_blocks caption_projection p_embedder"),
    "Ernie": Architecture("final_linear final_norm text_proj"),
    "Wan": Architecture(  # canonical are the makers' names
        "blocks vace_blocks patch_embedding text_embedding time_projection img_emb head condition_embedder",
        {
            (r"((?:vace_)?blocks)\.(\d+)\.", r"\1.\2."): {
                **{f"attn1.{x}": f"self_attn.{y}" for x, y in WAN_ATTENTION.items()},
                **{f"attn2.{x}": f"cross_attn.{y}" for x, y in WAN_ATTENTION.items()},
                "ffn.net.0.proj": "ffn.0",
                "ffn.net.2": "ffn.2",
                "norm2": "norm3",  # the one norm with weights; diffusers counts them otherwise
            },
            (r"condition_embedder\.", ""): {
                "time_embedder.linear_1": "time_embedding.0",
                "time_embedder.linear_2": "time_embedding.2",
                "time_proj": "time_projection.1",
                "text_embedder.linear_1": "text_embedding.0",
                "text_embedder.linear_2": "text_embedding.2",
                "image_embedder.norm1": "img_emb.proj.0",
                "image_embedder.ff.net.0.proj": "img_emb.proj.1",
                "image_embedder.ff.net.2": "img_emb.proj.3",
                "image_embedder.norm2": "img_emb.proj.4",
            },
            EVERYWHERE: {"head.head": "proj_out"},
        },
    ),
    "Anima": Architecture(
        "blocks t_embedding_norm patch_embed llm_adapter",
        {
            (r"blocks\.(\d+)\.", r"transformer_blocks.\1."): {
                **{f"self_attn.{x}": f"attn1.{y}" for x, y in ANIMA_ATTENTION.items()},
                **{f"cross_attn.{x}": f"attn2.{y}" for x, y in ANIMA_ATTENTION.items()},
                "mlp.layer1": "ff.net.0.proj",
                "mlp.layer2": "ff.net.2",
                **{f"adaln_modulation_{x}.{i}": f"norm{n}.linear_{i}"
                   for n, x in enumerate(("self_attn", "cross_attn", "mlp"), 1) for i in (1, 2)},
            },
            EVERYWHERE: {
                "x_embedder.proj.1": "patch_embed.proj",
                "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
                "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
                "t_embedding_norm": "time_embed.norm",
                "final_layer.adaln_modulation.1": "norm_out.linear_1",
                "final_layer.adaln_modulation.2": "norm_out.linear_2",
            },
        },
    ),
    "Krea 2": Architecture(
        "blocks first last tmlp tproj txtmlp txtfusion text_fusion time_mod_proj",
        {
            (r"blocks\.(\d+)\.", r"transformer_blocks.\1."): KREA_BLOCK,
            (r"txtfusion\.(layerwise|refiner)_blocks\.(\d+)\.", r"text_fusion.\1_blocks.\2."): KREA_BLOCK,
            EVERYWHERE: {
                "first": "x_embedder",
                "tmlp.0": "time_embed.linear_1",
                "tmlp.2": "time_embed.linear_2",
                "tproj.1": "time_mod_proj",
                "txtmlp.1": "txt_in.linear_1",
                "txtmlp.3": "txt_in.linear_2",
                "txtfusion.projector": "text_fusion.projector",
                "last.linear": "proj_out",
            },
        },
    ),
}  # fmt: skip

TOPS = frozenset(word for each in ARCHITECTURES.values() for word in each.tops.split())
BLOCKS = tuple(
    (re.compile(block), new_block, names)  # new_block may hold a group reference
    for each in ARCHITECTURES.values()
    for (block, new_block), names in each.names.items()
)


def make_canonical(path: str) -> str:
    """The canonical name of a dotted denoiser module path in any scheme; unknown paths stay as they are."""
    path = path.replace(".processor", "")
    if unet := translate_compvis(path):
        return unet
    for block, new_block, names in BLOCKS:
        found = block.match(path)
        if found and (name := names.get(path[found.end() :])):
            return found.expand(new_block) + name
    if path.endswith(".to_out") and not path.startswith("single_"):  # the old attention processors' shorthand
        return f"{path}.0"
    return path
