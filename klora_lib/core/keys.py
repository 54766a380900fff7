"""From a state-dict key to (role, layer, part), whatever trainer wrote it.

Layers are diffusers-style dotted module paths without a prefix; fused weights have a name of their
own (`to_qkv`, `to_added_qkv`, `to_qkv_mlp_proj`) with members, because files disagree on fusing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .dialects import canonical
from .words import dotted


class Key(NamedTuple):
    """role: "denoiser" | "text_encoder" | "text_encoder_2" | "text_encoder_3" | "language_model" | "bundled".

    A language model encodes the text for newer denoisers; its keys have no kohya names that hosts agree on.
    """

    role: str
    layer: str
    part: str


# --- the end of a key: the parameter's word ---

ADAPTER = r"(?:\.[^.]+)?"  # PEFT may leave the adapter's name: lora_A.default.weight
PARTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(rf"(.+?){end}"), module, part)
    for end, module, part in (
        # XLabs Flux: 1 is the image stream, 2 the text stream, none the single stream
        (r"\.processor\.(qkv|proj)_lora1\.(up|down)\.weight", r"\1.img_attn.\2", r"lora_\3.weight"),
        (r"\.processor\.(qkv|proj)_lora2\.(up|down)\.weight", r"\1.txt_attn.\2", r"lora_\3.weight"),
        (r"\.processor\.qkv_lora\.(up|down)\.weight", r"\1.attn.qkv", r"lora_\2.weight"),
        (r"\.processor\.proj_lora\.(up|down)\.weight", r"\1.linear2", r"lora_\2.weight"),
        # old attention processors: the projection's name is inside the parameter's
        (r"(?:\.processor)?\.(to_\w+?|add_[qkv]_proj)_lora\.(up|down)\.weight", r"\1.\2", r"lora_\3.weight"),
        (r"(?:\.processor)?\.(to_\w+?|add_[qkv]_proj)_lora\.alpha", r"\1.\2", "alpha"),
        (r"\.lora(?:_linear_layer)?\.(up|down|mid)\.weight", r"\1", r"lora_\2.weight"),
        (r"\.lora(?:_linear_layer)?\.alpha", r"\1", "alpha"),
        (rf"\.lora_(up|down|mid){ADAPTER}\.weight", r"\1", r"lora_\2.weight"),
        (rf"\.lora_A{ADAPTER}\.weight", r"\1", "lora_down.weight"),
        (rf"\.lora_B{ADAPTER}\.weight", r"\1", "lora_up.weight"),
        (rf"\.lora_B{ADAPTER}\.bias", r"\1", "lora_up.bias"),
        (rf"\.lora_magnitude_vector{ADAPTER}(?:\.weight)?", r"\1", "lora_magnitude_vector"),
        (rf"\.oft_R{ADAPTER}\.weight", r"\1", "oft_R"),
        (r"\.oft_R\.scaled_oft", r"\1", "scaled_oft"),  # OneTrainer's
        (r"\.(oft_blocks\.\d+)", r"\1", r"\2"),  # kohya's, a part of a fused projection of Flux
        (r"\.([ab][12]|bm)\.weight", r"\1", r"\2.weight"),
        (r"\.([^.]+)", r"\1", r"\2"),
    )
)


def split_part(key: str) -> tuple[str, str] | None:
    """(module as written, normalised parameter word); None without a dot."""
    for pattern, module, part in PARTS:
        if found := pattern.fullmatch(key):
            return found.expand(module), found.expand(part)
    return None


# --- the beginning of a key: whose module ---

UNDERSCORED = (
    (re.compile(r"(?:lora_unet|lora_transformer|lycoris_unet|oft_unet)_(.+)"), "denoiser"),
    (re.compile(r"(?:lora|lycoris|oft)_te1?_(.+)"), "text_encoder"),
    (re.compile(r"(?:lora|lycoris|oft)_te2_(.+)"), "text_encoder_2"),
    (re.compile(r"(?:lora|lycoris|oft)_te3_(.+)"), "text_encoder_3"),
    (re.compile(r"lycoris_(text_model_.+)"), "text_encoder"),
    (re.compile(r"lycoris_(.+)"), "denoiser"),
)

CLIP = r"(?:text_encoders\.)?"
DOTTED = (
    (re.compile(r"(?:(?:lora_unet|lora_transformer|unet|transformer|model\.diffusion_model|diffusion_model)\.)+(.+)"),
     "denoiser"),
    (re.compile(r"(?:(?:text_encoder|text_encoder_one|te1?|lora_te1?)\.)+(.+)"), "text_encoder"),
    (re.compile(r"(?:(?:text_encoder_2|text_encoder_two|te2|lora_te2)\.)+(.+)"), "text_encoder_2"),
    (re.compile(r"(?:(?:text_encoder_3|te3|lora_te3)\.)+(.+)"), "text_encoder_3"),
    (re.compile(rf"{CLIP}clip_[lh]\.(?:transformer\.)?(.+)"), "text_encoder"),
    (re.compile(rf"{CLIP}clip_g\.(?:transformer\.)?(.+)"), "text_encoder_2"),
    (re.compile(rf"{CLIP}t5(?:xxl)?\.(?:transformer\.)?(.+)"), "text_encoder_3"),
    (re.compile(r"text_encoders\.(.+)"), "language_model"),
    # no prefix at all: known by the first word
    (re.compile(
        r"((?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block|conv_in|conv_out|conv_norm_out|"
        r"time_embedding|add_embedding|class_embedding|time_embed|label_emb|transformer_blocks|single_transformer_blocks|"
        r"double_blocks|single_blocks|joint_blocks|layers|noise_refiner|context_refiner|x_embedder|context_embedder|"
        r"time_text_embed|norm_out|proj_out|img_in|txt_in|time_in|vector_in|guidance_in|final_layer|pos_embed|t_embedder|"
        r"y_embedder|distilled_guidance_layer|cap_embedder|all_x_embedder|all_final_layer|text_fusion|time_mod_proj|"
        r"txt_norm)(?:\..+)?)"
    ), "denoiser"),
    (re.compile(r"(text_model\..+)"), "text_encoder"),
)  # fmt: skip

TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def text_layer(path: str) -> str:
    """The transformers path of a text-encoder module: `text_model.encoder.layers.0.self_attn.q_proj`."""
    parent, _, last = path.rpartition(".")
    if parent.endswith("self_attn"):
        path = f"{parent}.{TEXT_WORDS.get(last, last)}"
    return f"text_model.{path}" if path.startswith("encoder.layers.") else path


def parse_key(key: str) -> Key | None:
    """The role, canonical layer and normalised part a key names; None where no dialect resolves it.

    Parts come in kohya's words: lora_A is lora_down.weight, lora_B is lora_up.weight.
    """
    if key.startswith("bundle_emb."):
        return Key("bundled", key.split(".")[1], key.split(".", 2)[-1])
    split = split_part(key.removeprefix("base_model.model."))
    if split is None:
        return None
    module, part = split
    if "." not in module:
        for pattern, role in UNDERSCORED:
            if found := pattern.fullmatch(module):
                return named(role, dotted(found[1]), part)
    for pattern, role in DOTTED:
        if found := pattern.fullmatch(module):
            return named(role, found[1], part)
    return None


def named(role: str, path: str, part: str) -> Key:
    if role == "language_model" or path.startswith("llm_adapter."):  # Anima's adapter, filed under the denoiser
        return Key("language_model", path, part)
    return Key(role, member(path) or canonical(path) if role == "denoiser" else text_layer(path), part)


NUMBERED = re.compile(r"(.+\.(?:qkv|linear1))\.(\d)")  # OneTrainer: qkv.0 is the query of a fused qkv, linear1.3 the mlp


def member(path: str) -> str | None:
    """`double_blocks.3.img_attn.qkv.1` -> `transformer_blocks.3.attn.to_k`; None where no slice is named."""
    found = NUMBERED.fullmatch(path)
    names = members(canonical(found[1])) if found else ()
    return names[int(found[2])] if found and int(found[2]) < len(names) else None


# --- fused layers ---

QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
MEMBERS: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = (
    (re.compile(r"(single_transformer_blocks\.\d+\.)"), "attn.to_qkv_mlp_proj",
     (*(f"attn.{name}" for name in QKV), "proj_mlp")),
    (re.compile(r"(single_transformer_blocks\.\d+\.attn\.)"), "to_qkv", QKV),  # XLabs: linear1 without its mlp
    (re.compile(r"(transformer_blocks\.\d+\.attn2?\.)"), "to_qkv", QKV),
    (re.compile(r"(transformer_blocks\.\d+\.attn\.)"), "to_added_qkv", ADDED_QKV),
    (re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+\.attention\.)"), "to_qkv", QKV),
)  # fmt: skip


def members(layer: str) -> tuple[str, ...]:
    """The canonical layers a fused layer stacks, in row order; () for a layer that is not fused."""
    for block, fused, names in MEMBERS:
        found = block.match(layer)
        if found and layer[found.end() :] == fused:
            return tuple(found[1] + name for name in names)
    return ()


def fused_name(layer: str) -> str | None:
    """The fused layer a split member belongs to (`...attn.to_k` -> `...attn.to_qkv`); None for any other."""
    for block, fused, names in MEMBERS:
        found = block.match(layer)
        if found and layer[found.end() :] in names:
            return found[1] + fused
    return None


ATTENTION = re.compile(
    r".*\b(?:attn\d*|(?:self_)?attention)\."
    r"(?:to_[qkv]|to_out(?:\.0)?|add_[qkv]_proj|to_add_out|to_qkv|to_added_qkv|to_qkv_mlp_proj)"
    r"|.*\b(?:self_attn|cross_attn)\.(?:[qkvo]|[kv]_img|[qkv]_proj|output_proj)"
)


def is_attention(layer: str) -> bool:
    """Whether a denoiser layer is a query, key, value or output projection of an attention block.

    Fused forms count, the joint attention's added projections too; proj_in, proj_out, proj_mlp never.
    """
    return ATTENTION.fullmatch(layer) is not None


def natural(layer: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key: numbers inside a name compare as numbers (`blocks.2` before `blocks.10`)."""
    return tuple((0, int(word)) if word.isdigit() else (1, word) for word in re.split(r"(\d+)", layer) if word)
