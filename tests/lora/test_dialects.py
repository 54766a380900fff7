"""A snapshot of each dialect: what its keys mean, and that it is the one that reads them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klora_lib.lora.architectures import ARCHITECTURES, make_canonical
from klora_lib.lora.dialects import DIALECTS, INSIDE, WORDS
from klora_lib.lora.file import lora_file
from klora_lib.lora.keys import Key, parse_key, split_prefix, split_word

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = Q.replace(".", "_")
TEXT = "text_model.encoder.layers.3.mlp.fc1"
FLAT_TEXT = TEXT.replace(".", "_")
T5 = "encoder.block.0.layer.0.SelfAttention.q"
FLAT_T5 = T5.replace(".", "_")
UP = "lora_up.weight"

# dialect -> key -> (role, layer, part)
SNAPSHOTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "kohya": {
        f"lora_unet_{FLAT}.alpha": ("denoiser", Q, "alpha"),
        f"lora_te_{FLAT_TEXT}.lora_up.weight": ("text_encoder", TEXT, UP),
        f"lora_te1_{FLAT_TEXT}.lora_up.weight": ("text_encoder", TEXT, UP),
        f"lora_te2_{FLAT_TEXT}.lora_up.weight": ("text_encoder_2", TEXT, UP),
        f"lora_te3_{FLAT_T5}.lora_up.weight": ("text_encoder_3", T5, UP),
        # left there by trainers: another underscore, the model's own umbrella word, a dot, an underscore at the end
        "lora_unet__blocks_0_self_attn_q.lora_up.weight": ("denoiser", "blocks.0.self_attn.q", UP),
        "lora_unet_diffusion_model_blocks_0_self_attn_q.lora_up.weight": ("denoiser", "blocks.0.self_attn.q", UP),
        "lora_unet_net_blocks_0_mlp_layer2.lora_up.weight": ("denoiser", "transformer_blocks.0.ff.net.2", UP),
        "lora_unet_blocks_22.self_attn.k.lora_up.weight": ("denoiser", "blocks.22.self_attn.k", UP),
        "lora_unet_transformer_blocks_0_attn_to_k_.lora_up.weight": ("denoiser", "transformer_blocks.0.attn.to_k", UP),
        f"lora_unet__orig_mod_{FLAT}.lora_up.weight": ("denoiser", Q, UP),
        "lora_unet_layers_0__orig_mod_attention_out.lora_up.weight": ("denoiser", "layers.0.attention.to_out.0", UP),
    },
    "kohya OFT": {
        f"oft_unet_{FLAT}.oft_blocks": ("denoiser", Q, "oft_blocks"),
        f"oft_te_{FLAT_TEXT}.oft_blocks": ("text_encoder", TEXT, "oft_blocks"),
        f"oft_te2_{FLAT_TEXT}.oft_blocks": ("text_encoder_2", TEXT, "oft_blocks"),
        f"oft_te3_{FLAT_T5}.oft_blocks": ("text_encoder_3", T5, "oft_blocks"),
    },
    "OneTrainer": {
        "lora_transformer_transformer_blocks_0_attn_add_k_proj.lora_up.weight":
            ("denoiser", "transformer_blocks.0.attn.add_k_proj", UP),
    },
    "LyCORIS": {
        f"lycoris_{FLAT}.lokr_w1": ("denoiser", Q, "lokr_w1"),
        f"lycoris_unet_{FLAT}.lokr_w1": ("denoiser", Q, "lokr_w1"),
        f"lycoris_te1_{FLAT_TEXT}.lokr_w1": ("text_encoder", TEXT, "lokr_w1"),
        f"lycoris_te2_{FLAT_TEXT}.lokr_w1": ("text_encoder_2", TEXT, "lokr_w1"),
        f"lycoris_te3_{FLAT_T5}.lokr_w1": ("text_encoder_3", T5, "lokr_w1"),
        f"lycoris_{FLAT_TEXT}.lokr_w1": ("text_encoder", TEXT, "lokr_w1"),
    },
    "diffusers": {
        f"unet.{Q}.lora_A.weight": ("denoiser", Q, "lora_down.weight"),
        f"unet.unet.{Q}.lora.up.weight": ("denoiser", Q, UP),
        f"unet.base_model.model.{Q}.lora_B.weight": ("denoiser", Q, UP),
        f"base_model.model.unet.{Q}.lora_B.default.weight": ("denoiser", Q, UP),
        f"unet._orig_mod.{Q}.lora.up.weight": ("denoiser", Q, UP),
        "transformer.layers.0._orig_mod.attention.to_q.lora_B.weight": ("denoiser", "layers.0.attention.to_q", UP),
        "transformer.single_blocks.7.linear1.3.lora_up.weight": ("denoiser", "single_transformer_blocks.7.proj_mlp", UP),
        f"text_encoder.base_model.model.{TEXT}.lora_B.weight": ("text_encoder", TEXT, UP),
        f"text_encoder_2.{TEXT}.lora_linear_layer.up.weight": ("text_encoder_2", TEXT, UP),
        "diffusion_model.net.blocks.0.mlp.layer1.lora_B.weight": ("denoiser", "transformer_blocks.0.ff.net.0.proj", UP),
        "diffusion_model.blocks.0.attn1.to_q.lora_B.weight": ("denoiser", "blocks.0.self_attn.q", UP),
        f"text_encoder_3.{T5}.lora_B.weight": ("text_encoder_3", T5, UP),
    },
    "ComfyUI": {
        f"text_encoders.clip_l.transformer.{TEXT}.lora_B.weight": ("text_encoder", TEXT, UP),
        f"clip_g.{TEXT}.lora_B.weight": ("text_encoder_2", TEXT, UP),
        f"t5xxl.transformer.{T5}.lora_B.weight": ("text_encoder_3", T5, UP),
        "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj.lora_B.weight":
            ("language_model", "qwen3_4b.transformer.model.layers.0.mlp.up_proj", UP),
    },
    "bare": {
        f"{Q}.lora_B.weight": ("denoiser", Q, UP),
        f"{TEXT}.lora_B.weight": ("text_encoder", TEXT, UP),
        "base_model.model.blocks.0.attn.wq.lora_B.weight": ("denoiser", "transformer_blocks.0.attn.to_q", UP),
        "pipe.dit.blocks.0.self_attn.q.lora_B.default.weight": ("denoiser", "blocks.0.self_attn.q", UP),
        "blocks.0.attn.b_to_qkv.lora_B.default.weight": ("denoiser", "transformer_blocks.0.attn.to_added_qkv", UP),
        "net.blocks.0.self_attn.q_proj.lora_B.weight": ("denoiser", "transformer_blocks.0.attn1.to_q", UP),
        "base_model.model.double_stream_blocks.0.block.attn1.to_q.lora_B.weight":
            ("denoiser", "double_stream_blocks.0.block.attn1.to_q", UP),
        "base_model.model._orig_mod.transformer_blocks.0.attn.to_q.lora_B.weight":
            ("denoiser", "transformer_blocks.0.attn.to_q", UP),
        "base_model.model.double_stream_modulation_img.linear.lora_B.weight":
            ("denoiser", "double_stream_modulation_img.lin", UP),
    },
}  # fmt: skip
CASES = [pytest.param(name, *of, id=of[0]) for name, keys in SNAPSHOTS.items() for of in keys.items()]


def find_dialect(key: str) -> str | None:
    """The name of the dialect that reads ``key``."""
    split = split_word(key)
    found = split_prefix(split[0]) if split else None
    return found[0].name if found else None


@pytest.mark.parametrize(("dialect", "key", "meaning"), CASES)
def test_snapshot(dialect: str, key: str, meaning: tuple[str, str, str]) -> None:
    assert (find_dialect(key), parse_key(key)) == (dialect, Key(*meaning))


def test_every_dialect_and_every_prefix_of_it_has_a_snapshot() -> None:
    assert [dialect.name for dialect in DIALECTS] == list(SNAPSHOTS)
    for dialect in DIALECTS:
        modules = [INSIDE.sub("", split[0]).rstrip("_") for key in SNAPSHOTS[dialect.name] if (split := split_word(key))]
        for prefix in dialect.prefixes:
            assert any(prefix.pattern.fullmatch(module) for module in modules), prefix.pattern.pattern


def test_order_matters_where_two_dialects_fit() -> None:
    """`lycoris_text_model_…` fits LyCORIS' denoiser too; `unet.` is not one of the paths that need no prefix."""
    for dialect in DIALECTS:
        names = [prefix.pattern.pattern for prefix in dialect.prefixes]
        assert len(set(names)) == len(names)
    lycoris = next(dialect for dialect in DIALECTS if dialect.name == "LyCORIS")
    fitting = [prefix.role for prefix in lycoris.prefixes if prefix.pattern.fullmatch(f"lycoris_{FLAT_TEXT}")]
    assert fitting == ["text_encoder", "denoiser"]


UNREAD = ("who.knows", f"te1_{FLAT_TEXT}.lora_up.weight", "lora_te4_model_layers_0.lora_up.weight",
          "pipe.dit2.blocks.0.self_attn.q.lora_A.weight", "model.layers.0.mlp.up_proj.lora_A.weight")  # fmt: skip


@pytest.mark.parametrize("key", UNREAD)
def test_what_no_dialect_reads_is_none(key: str) -> None:
    assert (parse_key(key), find_dialect(key)) == (None, None)


def test_every_architecture_leads_to_fixed_points() -> None:
    """A name that a table gives is canonical itself: no second table changes it again."""
    for architecture in ARCHITECTURES.values():
        for (_, block), names in architecture.names.items():
            for name in names.values():
                path = block.replace(r"\1", "layers" if block.startswith(r"\1.\2") else "0").replace(r"\2", "0") + name
                assert make_canonical(path) == path


# --- biases, in every spelling of the parameters ---

BIASES = {
    "diffusers": (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight", f"unet.{Q}.lora.up.bias"),
    "linear layer": tuple(f"unet.{Q}.lora_linear_layer.{w}" for w in ("down.weight", "up.weight", "up.bias")),
    "kohya": tuple(f"lora_unet_{FLAT}.lora_{w}" for w in ("down.weight", "up.weight", "up.bias")),
    "PEFT": (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight", f"unet.{Q}.lora_B.bias"),
    "PEFT, named": tuple(f"base_model.model.unet.{Q}.lora_{w}" for w in ("A.x.weight", "B.x.weight", "B.x.bias")),
    "attention processor": tuple(f"unet.{Q[:-5]}.processor.to_q_lora.{w}" for w in ("down.weight", "up.weight", "up.bias")),
}


@pytest.mark.parametrize("spelling", BIASES)
def test_a_bias_is_added_with_the_files_scale(spelling: str) -> None:
    down, up, bias = BIASES[spelling]
    stem = next(key for key in BIASES[spelling]).partition(".lora")[0].replace(".processor.to_q_lora.down.weight", ".to_q")
    tensors = {down: torch.ones(2, 8), up: torch.ones(8, 2), bias: torch.arange(8.0), f"{stem}.alpha": torch.tensor(1.0)}
    file = lora_file(tensors, "a")
    delta = file.modules[Q]
    assert file.unknown == () and delta.bias is not None
    assert torch.equal(delta.bias, torch.arange(8.0) / 2)


def test_both_biases_of_a_module_are_added() -> None:
    down, up, bias = BIASES["kohya"]
    more: dict[str, Tensor] = {f"lora_unet_{FLAT}.diff_b": torch.ones(8), f"lora_unet_{FLAT}.alpha": torch.tensor(1.0)}
    file = lora_file({down: torch.ones(2, 8), up: torch.ones(8, 2), bias: torch.arange(8.0), **more}, "a")
    assert torch.equal(file.modules[Q].bias, torch.arange(8.0) / 2 + 1)  # type: ignore[arg-type]


def test_every_spelling_of_a_parameter_is_used() -> None:
    """No pattern stands behind one that takes all its keys."""
    examples = [key for keys in SNAPSHOTS.values() for key in keys] + [key for keys in BIASES.values() for key in keys] + [
        "double_blocks.0.processor.qkv_lora1.up.weight", "double_blocks.0.processor.qkv_lora2.up.weight",
        "single_blocks.0.processor.qkv_lora.up.weight", "single_blocks.0.processor.proj_lora.up.weight",
        f"unet.{Q[:-5]}.processor.to_q_lora.alpha", f"unet.{Q}.lora.alpha", f"unet.{Q}.lora_magnitude_vector",
        f"lora_unet_{FLAT}.a1.weight", f"base_model.model.{Q}.oft_R.weight", f"transformer.{Q}.oft_R.scaled_oft",
        f"lora_unet_{FLAT}.oft_blocks.0",
    ]  # fmt: skip
    first = {next(i for i, (pattern, *_) in enumerate(WORDS) if pattern.fullmatch(key)) for key in examples}
    assert first == set(range(len(WORDS)))
