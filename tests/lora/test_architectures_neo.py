"""Theorem: the model's own module path and every key that names it in a file meet in one layer name.

Paths are those of the denoisers as Forge Neo builds them, keys those that its LoRA key maps accept.
"""

from __future__ import annotations

import pytest
import torch

from klora_lib.lora.architectures import make_canonical
from klora_lib.lora.file import lora_file
from klora_lib.lora.keys import Key, is_attention, parse_key

ALL = "transformer.{} lycoris_{_} lora_transformer_{_} {}"  # diffusers' name in each prefix; {_} with underscores
Z = "diffusion_model.{} transformer.{} lycoris_{_} {}"

# architecture -> module path -> (is it attention?, diffusers-style name beside the path itself, its prefixes)
ARCHITECTURES: dict[str, dict[str, tuple[bool, str, str]]] = {
    "Flux.2": {
        "double_blocks.1.img_attn.qkv": (True, "", ""),
        "double_blocks.1.txt_attn.proj": (True, "transformer_blocks.1.attn.to_add_out", ALL),
        "double_blocks.1.img_mlp.0": (False, "transformer_blocks.1.ff.linear_in", ALL),
        "double_blocks.1.txt_mlp.2": (False, "transformer_blocks.1.ff_context.linear_out", ALL),
        "single_blocks.1.linear1": (True, "single_transformer_blocks.1.attn.to_qkv_mlp_proj", ALL),
        "single_blocks.1.linear2": (False, "single_transformer_blocks.1.attn.to_out", ALL),
        "double_stream_modulation_img.lin": (False, "double_stream_modulation_img.linear", "transformer.{}"),
        "single_stream_modulation.lin": (False, "single_stream_modulation.linear", "transformer.{}"),
        "time_in.in_layer": (False, "time_guidance_embed.timestep_embedder.linear_1", "transformer.{} lycoris_{_}"),
        "double_blocks.0.img_mlp.gate_proj": (False, "", ""),
    },
    "Chroma": {
        "double_blocks.1.img_attn.proj": (True, "transformer_blocks.1.attn.to_out.0", ALL),
        "single_blocks.1.linear2": (False, "single_transformer_blocks.1.proj_out", ALL),
        "distilled_guidance_layer.layers.2.in_layer": (False, "", ""),
    },
    "Lumina 2 and Z-Image": {
        "layers.1.attention.qkv": (True, "", ""),
        "context_refiner.1.attention.out": (True, "context_refiner.1.attention.to_out.0", Z),
        "noise_refiner.1.feed_forward.w2": (False, "noise_refiner.1.feed_forward.w2", Z),
        "layers.1.adaLN_modulation.0": (False, "layers.1.adaLN_modulation.0", Z),
        "cap_embedder.1": (False, "cap_embedder.1", Z),
        "t_embedder.mlp.2": (False, "t_embedder.mlp.2", Z),
        "x_embedder": (False, "all_x_embedder.2-1", Z),
        "final_layer.linear": (False, "all_final_layer.2-1.linear", Z),
        "final_layer.adaLN_modulation.1": (False, "all_final_layer.2-1.adaLN_modulation.1", Z),
        "clip_text_pooled_proj.1": (False, "", ""),
    },
    "Qwen-Image": {
        "transformer_blocks.1.attn.to_q": (True, "transformer_blocks.1.attn.to_q", ALL),
        "transformer_blocks.1.attn.add_k_proj": (True, "transformer_blocks.1.attn.add_k_proj", ALL),
        "transformer_blocks.1.attn.to_out.0": (True, "transformer_blocks.1.attn.to_out.0", ALL),
        "transformer_blocks.1.img_mlp.net.0.proj": (False, "transformer_blocks.1.img_mlp.net.0.proj", ALL),
        "transformer_blocks.1.txt_mod.1": (False, "transformer_blocks.1.txt_mod.1", ALL),
        "img_in": (False, "img_in", ALL),
        "txt_in": (False, "txt_in", ALL),
        "proj_out": (False, "proj_out", ALL),
    },
    "Anima": {
        "blocks.1.self_attn.q_proj": (True, "", ""),
        "blocks.1.cross_attn.output_proj": (True, "", ""),
        "blocks.1.mlp.layer1": (False, "", ""),
        "blocks.1.adaln_modulation_self_attn.1": (False, "", ""),
        "blocks.1.adaln_modulation_cross_attn.2": (False, "", ""),
        "blocks.1.adaln_modulation_mlp.1": (False, "", ""),
        "final_layer.adaln_modulation.1": (False, "", ""),
        "t_embedder.1.linear_2": (False, "", ""),
        "x_embedder.proj.1": (False, "", ""),
    },
    "Wan": {
        "blocks.1.self_attn.o": (True, "", ""),
        "blocks.1.cross_attn.k_img": (True, "", ""),
        "blocks.1.ffn.2": (False, "", ""),
        "img_emb.proj.1": (False, "", ""),
        "time_projection.1": (False, "", ""),
        "head.head": (False, "", ""),
    },
    "Krea 2": {
        "blocks.1.attn.wq": (True, "transformer_blocks.1.attn.to_q", Z),
        "blocks.1.attn.wo": (True, "transformer_blocks.1.attn.to_out", Z),
        "blocks.1.attn.gate": (False, "transformer_blocks.1.attn.to_gate", Z),
        "blocks.1.mlp.down": (False, "transformer_blocks.1.ff.down", Z),
        "txtfusion.layerwise_blocks.1.attn.wv": (True, "text_fusion.layerwise_blocks.1.attn.to_v", Z),
        "txtfusion.refiner_blocks.1.mlp.up": (False, "text_fusion.refiner_blocks.1.ff.up", Z),
        "txtfusion.projector": (False, "text_fusion.projector", Z),
        "first": (False, "img_in", Z),
        "tmlp.2": (False, "time_embed.linear_2", Z),
        "tproj.1": (False, "time_mod_proj", Z),
        "txtmlp.3": (False, "txt_in.linear_2", Z),
        "last.linear": (False, "final_layer.linear", Z),
    },
    "Ernie": {
        "layers.1.self_attention.to_k": (True, "layers.1.self_attention.to_k", "transformer.{}"),
        "layers.1.self_attention.to_out.0": (True, "layers.1.self_attention.to_out.0", "transformer.{}"),
        "layers.1.mlp.gate_proj": (False, "layers.1.mlp.gate_proj", "transformer.{}"),
        "layers.1.mlp.linear_fc2": (False, "layers.1.mlp.linear_fc2", "transformer.{}"),
        "final_linear": (False, "final_linear", "transformer.{}"),
        "text_proj": (False, "text_proj", "transformer.{}"),
    },
}
CASES = [pytest.param(path, *of, id=f"{name}-{path}") for name, paths in ARCHITECTURES.items() for path, of in paths.items()]


@pytest.mark.parametrize(("path", "attention", "named", "prefixes"), CASES)
def test_module_and_keys_meet(path: str, attention: bool, named: str, prefixes: str) -> None:
    layer = make_canonical(path)
    keys = [f"lora_unet_{path.replace('.', '_')}", f"diffusion_model.{path}"]
    keys += [prefix.replace("{_}", named.replace(".", "_")).replace("{}", named) for prefix in prefixes.split()]
    assert [parse_key(f"{key}.lora_A.weight") for key in keys] == [Key("denoiser", layer, "lora_down.weight")] * len(keys)
    assert make_canonical(layer) == layer and is_attention(layer) is attention


def test_flux_single_streams_qkv_alone_is_cut_into_three() -> None:
    stem = "diffusion_model.single_blocks.0.linear1_qkv"
    file = lora_file({f"{stem}.lora_A.weight": torch.ones(2, 4), f"{stem}.lora_B.weight": torch.ones(12, 2)}, "f")
    assert list(file.modules) == [f"single_transformer_blocks.0.attn.to_{x}" for x in "kqv"]
    assert {delta.shape for delta in file.modules.values()} == {(4, 4)}


LANGUAGE = (
    "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj",
    "diffusion_model.llm_adapter.blocks.0.cross_attn.q_proj",
    "lora_unet_llm_adapter_blocks_0_cross_attn_q_proj",
)


@pytest.mark.parametrize("stem", LANGUAGE)
def test_language_models_are_text_under_the_files_own_names(stem: str) -> None:
    """Hosts know them by these; Anima's adapter is filed under the denoiser, and is a part of its text encoder."""
    denoiser = {"lora_unet_blocks_0_mlp_layer1.lora_down.weight": torch.ones(2, 4),
                "lora_unet_blocks_0_mlp_layer1.lora_up.weight": torch.ones(4, 2)}  # fmt: skip
    words = {f"{stem}.lora_A.weight": torch.ones(2, 4), f"{stem}.lora_B.weight": torch.ones(4, 2)}
    file = lora_file({**denoiser, **words}, "f")
    assert set(file.text) == set(words) and list(file.modules) == ["transformer_blocks.0.ff.net.0.proj"]
    assert not file.foreign_text and file.unknown == ()
