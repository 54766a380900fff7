"""Theorem: a layer's name survives every dialect."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klora_lib.lora.architectures import make_canonical
from klora_lib.lora.keys import Key, find_fused, is_attention, list_members, make_natural_order, parse_key

from .. import dialects

# --- layers as the architectures have them ---

few = settings(max_examples=40, deadline=None)
small = st.integers(0, 12)
RESNET = ("conv1", "conv2", "time_emb_proj", "conv_shortcut", "norm1", "norm2")
TRANSFORMER = (
    *(f"attn{n}.{p}" for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3",
)  # fmt: skip


@st.composite
def unet_layers(draw: st.DrawFn) -> str:
    top = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2", "add_embedding.linear_1"]
    blocks = [f"down_blocks.{draw(st.integers(0, 3))}", f"up_blocks.{draw(st.integers(0, 3))}", "mid_block"]
    block = draw(st.sampled_from([*blocks, ""]))
    if not block:
        return draw(st.sampled_from(top))
    j = draw(st.integers(0, 2 if block.startswith("up") else 1))
    inside = [
        f"attentions.{0 if block == 'mid_block' else j}.transformer_blocks.{draw(small)}.{name}" for name in TRANSFORMER
    ]
    inside += [f"attentions.{0 if block == 'mid_block' else j}.{name}" for name in ("proj_in", "proj_out", "norm")]
    inside += [f"resnets.{j}.{name}" for name in RESNET]
    inside += {"d": ["downsamplers.0.conv"], "u": ["upsamplers.0.conv"], "m": []}[block[0]]
    return f"{block}.{draw(st.sampled_from(inside))}"


@st.composite
def flux_layers(draw: st.DrawFn) -> str:
    double = st.sampled_from(sorted(dialects.FLUX_DOUBLE)).map(lambda name: f"transformer_blocks.{draw(small)}.{name}")
    single = st.sampled_from(sorted(dialects.FLUX_SINGLE)).map(
        lambda name: f"single_transformer_blocks.{draw(small)}.{name}"
    )
    return draw(double | single)


sd3_layers = st.builds("transformer_blocks.{}.{}".format, small, st.sampled_from(sorted(dialects.SD3_JOINT)))


def survives(layer: str, dialect: str) -> None:
    parsed = [parse_key(str(key)) for key in dialects.keys(layer, dialect)]
    assert parsed == [Key("denoiser", layer, part) for part in ("lora_up.weight", "lora_down.weight", "alpha")]


@pytest.mark.parametrize("dialect", dialects.UNET_DIALECTS)
@few
@given(layer=unet_layers())
def test_unet_layers_survive_every_dialect(dialect: str, layer: str) -> None:
    survives(layer, dialect)


@pytest.mark.parametrize("dialect", dialects.ATTENTION_DIALECTS)
@few
@given(layer=unet_layers().filter(is_attention))
def test_attention_layers_survive_the_attention_processors(dialect: str, layer: str) -> None:
    survives(layer, dialect)


@pytest.mark.parametrize("dialect", dialects.FLUX_DIALECTS)
@few
@given(layer=flux_layers())
def test_flux_layers_survive_every_dialect(dialect: str, layer: str) -> None:
    for name in list_members(layer) if dialect in dialects.SPLITTING and list_members(layer) else (layer,):
        survives(name, dialect)


@pytest.mark.parametrize("dialect", dialects.SD3_DIALECTS)
@few
@given(layer=sd3_layers)
def test_sd3_layers_survive_every_dialect(dialect: str, layer: str) -> None:
    for name in list_members(layer) if dialect in dialects.SPLITTING and list_members(layer) else (layer,):
        survives(name, dialect)


@few
@given(layer=unet_layers() | flux_layers() | sd3_layers)
def test_canonical_names_are_fixed_points(layer: str) -> None:
    assert make_canonical(layer) == layer


Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TE = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "role", "layer", "part"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.hada_w1_a", "denoiser", Q, "hada_w1_a"),
        ("lora_unet_output_blocks_2_1_conv.diff", "denoiser", "up_blocks.0.upsamplers.0.conv", "diff"),
        ("lora_unet_output_blocks_2_2_conv.diff_b", "denoiser", "up_blocks.0.upsamplers.0.conv", "diff_b"),
        ("lora_unet_label_emb_0_0.lora_mid.weight", "denoiser", "add_embedding.linear_1", "lora_mid.weight"),
        ("lora_unet_out_0.w_norm", "denoiser", "conv_norm_out", "w_norm"),
        ("lora_unet_middle_block_2_out_layers_0.b_norm", "denoiser", "mid_block.resnets.1.norm2", "b_norm"),
        ("oft_unet_mid_block_attentions_0_norm.oft_blocks", "denoiser", "mid_block.attentions.0.norm", "oft_blocks"),
        (f"unet.{Q}.lora_magnitude_vector", "denoiser", Q, "lora_magnitude_vector"),
        (f"unet.{Q}.lora_magnitude_vector.default.weight", "denoiser", Q, "lora_magnitude_vector"),
        (f"unet.{Q}.lora_B.my_subject.weight", "denoiser", Q, "lora_up.weight"),
        (f"unet.{Q}.lora_B.bias", "denoiser", Q, "lora_up.bias"),
        (f"unet.{Q}.dora_scale", "denoiser", Q, "dora_scale"),
        (f"unet.{Q[:-4]}processor.to_q.lora.up.weight", "denoiser", Q, "lora_up.weight"),
        (f"unet.{Q[:-4]}to_out_lora.up.weight", "denoiser", f"{Q[:-4]}to_out.0", "lora_up.weight"),
        (f"lycoris_{Q.replace('.', '_')}.lokr_w2_b", "denoiser", Q, "lokr_w2_b"),
        ("lora_unet_x_embedder.b1.weight", "denoiser", "x_embedder", "b1.weight"),
        ("lora_unet_joint_blocks_3_x_block_attn2_qkv.alpha", "denoiser", "transformer_blocks.3.attn2.to_qkv", "alpha"),
        ("lora_unet_time_in_in_layer.alpha", "denoiser", "time_text_embed.timestep_embedder.linear_1", "alpha"),
        ("single_blocks.4.processor.qkv_lora.up.weight", "denoiser", "single_transformer_blocks.4.attn.to_qkv",
         "lora_up.weight"),
        ("single_blocks.4.processor.proj_lora.up.weight", "denoiser", "single_transformer_blocks.4.proj_out",
         "lora_up.weight"),
        ("diffusion_model.layers.3.attention.qkv.lora_A.weight", "denoiser", "layers.3.attention.to_qkv",
         "lora_down.weight"),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder", TE, "alpha"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder", TE, "alpha"),
        ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj.alpha", "text_encoder_2", TE, "alpha"),
        (f"text_encoder.{TE}.lora_A.weight", "text_encoder", TE, "lora_down.weight"),
        (f"text_encoder_2.{TE}.lora_linear_layer.up.weight", "text_encoder_2", TE, "lora_up.weight"),
        (f"text_encoder.{TE.replace('q_proj', 'to_q_lora')}.up.weight", "text_encoder", TE, "lora_up.weight"),
        (f"text_encoder.text_encoder.{TE}.lora.up.weight", "text_encoder", TE, "lora_up.weight"),
        (f"text_encoders.clip_l.transformer.{TE}.lora_B.weight", "text_encoder", TE, "lora_up.weight"),
        (f"clip_g.{TE}.lora_B.weight", "text_encoder_2", TE, "lora_up.weight"),
        (f"te1.{TE}.lora_B.weight", "text_encoder", TE, "lora_up.weight"),
        ("bundle_emb.cat.string_to_param.*", "bundled", "cat", "string_to_param.*"),
    ],
)  # fmt: skip
def test_examples(key: str, role: str, layer: str, part: str) -> None:
    assert parse_key(key) == Key(role, layer, part)


@pytest.mark.parametrize("key", ["", "weight", "cond_stage_model.x.weight", "first_stage_model.decoder.conv_in.weight"])
def test_what_no_dialect_knows_is_none(key: str) -> None:
    assert parse_key(key) is None


prefixes = st.sampled_from(["", "lora_unet_", "unet.", "transformer.", "lora_te_", "bundle_emb.", "base_model.model."])


@given(prefixes, st.text(alphabet="ab_.0lora\n", max_size=30))
def test_any_string_is_parsed_or_none(prefix: str, rest: str) -> None:
    assert parse_key(prefix + rest) is None or isinstance(parse_key(prefix + rest), Key)


@few
@given(layer=unet_layers() | flux_layers() | sd3_layers)
def test_members_and_fused_name_are_inverse(layer: str) -> None:
    assert all(find_fused(member) == layer for member in list_members(layer))
    whole = find_fused(layer)
    assert whole is None or layer in list_members(whole)


def test_a_unet_has_nothing_fused() -> None:
    assert find_fused(Q) is None
    assert list_members("single_transformer_blocks.0.attn.to_qkv_mlp_proj") == (
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.0.attn.to_v",
        "single_transformer_blocks.0.proj_mlp",
    )


@pytest.mark.parametrize(
    ("layer", "yes"),
    [
        (Q, True),
        (Q.replace("to_q", "to_out.0"), True),
        ("transformer_blocks.0.attn.add_k_proj", True),
        ("transformer_blocks.0.attn.to_add_out", True),
        ("transformer_blocks.0.attn.to_added_qkv", True),
        ("transformer_blocks.0.attn2.to_qkv", True),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj", True),
        ("layers.0.attention.to_out.0", True),
        ("down_blocks.1.attentions.0.proj_in", False),
        ("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", False),
        ("single_transformer_blocks.0.proj_mlp", False),
        ("single_transformer_blocks.0.proj_out", False),
        ("transformer_blocks.0.attn.norm_q", False),
        ("mid_block.resnets.0.conv1", False),
    ],
)
def test_attention_is_the_four_projections(layer: str, yes: bool) -> None:
    assert is_attention(layer) is yes


def test_numbers_sort_as_numbers() -> None:
    names = ["blocks.2.attn", "blocks.10.attn", "blocks.2", "conv_in", "1.x"]
    assert sorted(names, key=make_natural_order) == ["1.x", "blocks.2", "blocks.2.attn", "blocks.10.attn", "conv_in"]
