"""Dotted module paths of other naming schemes to the diffusers path: compvis UNet, Flux, SD3, Z-Image, Krea 2.

Each scheme is one table of (pattern, replacement). A path none of them knows is already canonical.
"""

from __future__ import annotations

import re

# --- compvis UNet: two resnets a level, three entries a level (SD1.5, SD2 and SDXL alike) ---

RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}

COMPVIS_TOP = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "class_embedding.linear_1": "add_embedding.linear_1",  # diffusers' other name for it (unCLIP, refiners)
    "class_embedding.linear_2": "add_embedding.linear_2",
}

COMPVIS_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)")
COMPVIS_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")


def compvis_unet(path: str) -> str | None:
    """`input_blocks.4.1.proj_in` -> `down_blocks.1.attentions.0.proj_in`; None for a path of another scheme."""
    if path in COMPVIS_TOP:
        return COMPVIS_TOP[path]
    if middle := COMPVIS_MIDDLE.fullmatch(path):
        place, rest = middle.groups()
        if place == "1":
            return f"mid_block.attentions.0.{rest}"
        return f"mid_block.resnets.{int(place) // 2}.{RESNET_PARTS.get(rest, rest)}"
    if block := COMPVIS_BLOCK.fullmatch(path):
        side, n, place, rest = block.groups()
        return compvis_block(side == "input_blocks", int(n), place, rest)
    return None


def compvis_block(down: bool, n: int, place: str, rest: str) -> str:
    """One entry n of input_blocks (n >= 1) or output_blocks; place 0 is the resnet, 1 the attention."""
    level, j = divmod(n - 1 if down else n, 3)
    level_path = f"{'down' if down else 'up'}_blocks.{level}"
    if rest == "op":
        return f"{level_path}.downsamplers.0.conv"
    if rest == "conv":
        return f"{level_path}.upsamplers.0.conv"
    if place == "0":
        return f"{level_path}.resnets.{j}.{RESNET_PARTS.get(rest, rest)}"
    return f"{level_path}.attentions.{j}.{rest}"


# --- transformers: the makers' names on the left ---

Table = tuple[tuple[re.Pattern[str], str], ...]


def table(prefix: str, new_prefix: str, names: dict[str, str]) -> Table:
    return tuple(
        (re.compile(prefix + re.escape(old)), new_prefix + new)  # new_prefix may hold a group reference
        for old, new in names.items()
    )


KREA_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.gate": "attn.to_gate",
    "attn.wo": "attn.to_out.0",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
JOINT = r"(?:double_blocks|joint_blocks)\.(\d+)\."
TRANSFORMERS: Table = (
    # Flux
    *table(JOINT, r"transformer_blocks.\1.", {
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
    }),
    *table(r"single_blocks\.(\d+)\.", r"single_transformer_blocks.\1.", {
        "linear1": "attn.to_qkv_mlp_proj",
        "attn.qkv": "attn.to_qkv",
        "linear2": "proj_out",
        "modulation.lin": "norm.linear",
        "norm.query_norm": "attn.norm_q",
        "norm.key_norm": "attn.norm_k",
    }),
    *table("", "", {
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
    }),
    # Chroma, else as Flux
    *table(r"distilled_guidance_layer\.layers\.(\d+)\.", r"distilled_guidance_layer.layers.\1.", {
        "in_layer": "linear_1",
        "out_layer": "linear_2",
    }),
    # SD3
    *table(JOINT, r"transformer_blocks.\1.", {
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
    }),
    *table("", "", {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }),
    # Z-Image
    *table(r"(layers|noise_refiner|context_refiner)\.(\d+)\.attention\.", r"\1.\2.attention.", {
        "qkv": "to_qkv",
        "out": "to_out.0",
        "q_norm": "norm_q",
        "k_norm": "norm_k",
    }),
    *table("", "", {
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "proj_out",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    }),
    # Flux.2: diffusers' names on the left, where they are not Flux's
    *table(r"transformer_blocks\.(\d+)\.(ff|ff_context)\.", r"transformer_blocks.\1.\2.", {
        "linear_in": "net.0.proj",
        "linear_out": "net.2",
    }),
    *table(r"single_transformer_blocks\.(\d+)\.", r"single_transformer_blocks.\1.", {"attn.to_out": "proj_out"}),
    *table(r"single_blocks\.(\d+)\.", r"single_transformer_blocks.\1.", {"linear1_qkv": "attn.to_qkv"}),
    *table(r"time_guidance_embed\.(timestep|guidance)_embedder\.", r"time_text_embed.\1_embedder.", {
        "linear_1": "linear_1",
        "linear_2": "linear_2",
    }),
    *table(r"((?:double|single)_stream_modulation\w*)\.", r"\1.", {"linear": "lin"}),
    # Krea 2
    *table(r"blocks\.(\d+)\.", r"transformer_blocks.\1.", KREA_BLOCK),
    *table(r"txtfusion\.(layerwise|refiner)_blocks\.(\d+)\.", r"text_fusion.\1_blocks.\2.", KREA_BLOCK),
    *table("", "", {
        "first": "x_embedder",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
        "last.linear": "proj_out",
    }),
)  # fmt: skip


def canonical(path: str) -> str:
    """The diffusers-style path of a dotted denoiser module path in any scheme; unknown paths stay as they are."""
    path = path.replace(".processor", "")
    if unet := compvis_unet(path):
        return unet
    for pattern, replacement in TRANSFORMERS:
        if found := pattern.fullmatch(path):
            return found.expand(replacement)
    if path.endswith(".to_out") and not path.startswith("single_"):  # the old attention processors' shorthand
        return f"{path}.0"
    return path
