"""Underscored kohya names back to dotted module paths.

kohya writes every dot of a module path as an underscore, so `to_q` and `transformer_blocks` need a
vocabulary to survive the way back. The words are module names of the public architectures; one
entry serves every layer that uses it.
"""

from __future__ import annotations

VOCABULARY: dict[str, str] = {
    "UNet, diffusers names": (
        "down_blocks up_blocks mid_block transformer_blocks proj_in proj_out to_q to_k to_v to_out conv_in conv_out "
        "conv_shortcut conv_norm_out time_emb_proj time_embedding add_embedding class_embedding linear_1 linear_2 "
        "group_norm motion_modules temporal_transformer"
    ),
    "UNet, compvis names": (
        "input_blocks output_blocks middle_block in_layers out_layers emb_layers skip_connection time_embed label_emb"
    ),
    "Flux, SD3, Qwen-Image: diffusers names": (
        "single_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out to_qkv to_added_qkv to_qkv_mlp_proj "
        "norm1_context norm2_context ff_context proj_mlp norm_out norm_q norm_k norm_added_q norm_added_k x_embedder "
        "context_embedder time_text_embed time_guidance_embed timestep_embedder guidance_embedder text_embedder "
        "pos_embed linear_in linear_out single_stream_modulation double_stream_modulation_img "
        "double_stream_modulation_txt distilled_guidance_layer in_proj txt_norm"
    ),
    "Flux, the makers' names": (
        "double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in vector_in "
        "guidance_in in_layer out_layer final_layer adaLN_modulation query_norm key_norm"
    ),
    "SD3, the makers' names": "joint_blocks x_block context_block y_embedder t_embedder ln_q ln_k",
    "Z-Image and Lumina": (
        "feed_forward noise_refiner context_refiner cap_embedder all_x_embedder all_final_layer q_norm k_norm "
        "attention_norm1 attention_norm2 ffn_norm1 ffn_norm2 clip_text_pooled_proj time_caption_embed caption_embedder "
        "linear_3"
    ),
    "Wan": (
        "self_attn cross_attn patch_embedding text_embedding time_projection k_img v_img condition_embedder "
        "time_embedder time_proj norm_k_img img_emb vace_blocks vace_patch_embedding image_embedder norm_added_k"
    ),
    "Anima": (
        "output_proj adaln_modulation adaln_modulation_self_attn adaln_modulation_cross_attn adaln_modulation_mlp "
        "t_embedding_norm llm_adapter patch_embed"
    ),
    "Krea 2": "layerwise_blocks refiner_blocks text_fusion to_gate time_mod_proj",
    "HiDream": "double_stream_blocks single_stream_blocks caption_projection p_embedder",
    "Ernie": (
        "self_attention gate_proj up_proj down_proj linear_fc2 adaLN_sa_ln adaLN_mlp_ln final_norm final_linear text_proj"
    ),
    "text encoders": (
        "text_model text_projection q_proj k_proj v_proj out_proj token_embedding position_embedding layer_norm1 "
        "layer_norm2 final_layer_norm layer_norm wi_0 wi_1"
    ),
}
ATOMS = frozenset(word for words in VOCABULARY.values() for word in words.split())
LONGEST = max(atom.count("_") + 1 for atom in ATOMS)


def restore_dots(name: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` -> `down_blocks.0.attentions.1.proj_in`, longest known word first."""
    words = name.split("_")
    atoms: list[str] = []
    at = 0
    while at < len(words):
        for size in range(min(LONGEST, len(words) - at), 0, -1):
            atom = "_".join(words[at : at + size])
            if size == 1 or atom in ATOMS:
                break
        atoms.append(atom)
        at += size
    return ".".join(atoms)
