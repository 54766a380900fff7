"""From a state-dict key to (role, layer, part), whatever trainer wrote it.

Layers are diffusers-style dotted module paths without a prefix; fused weights have a name of their
own (`to_qkv`, `to_added_qkv`, `to_qkv_mlp_proj`) with members, because files disagree on fusing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .architectures import make_canonical
from .dialects import DIALECTS, INSIDE, WORDS, Dialect
from .words import restore_dots


class Key(NamedTuple):
    """role: "denoiser" | "text_encoder" | "text_encoder_2" | "text_encoder_3" | "language_model" | "bundled".

    A language model encodes the text for newer denoisers; its keys have no kohya names that hosts agree on.
    """

    role: str
    layer: str
    part: str


def split_word(key: str) -> tuple[str, str] | None:
    """(the part before the word, the word in kohya's spelling); None if there is no dot."""
    for pattern, module, part in WORDS:
        if found := pattern.fullmatch(key):
            return found.expand(module), found.expand(part)
    return None


def split_prefix(module: str) -> tuple[Dialect, str, str] | None:
    """(the first dialect that fits, role, dotted path); None if none fits."""
    module = INSIDE.sub("", module).rstrip("_")
    for dialect in DIALECTS:
        for pattern, role in dialect.prefixes:
            if found := pattern.fullmatch(module):
                path = found[1]  # a dot in a flat path is where the writer forgot one
                return dialect, role, ".".join(map(restore_dots, path.split("."))) if dialect.flat else path
    return None


TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def name_text_layer(path: str) -> str:
    """The transformers path of a text-encoder module: `text_model.encoder.layers.0.self_attn.q_proj`."""
    parent, _, last = path.rpartition(".")
    if parent.endswith("self_attn"):
        path = f"{parent}.{TEXT_WORDS.get(last, last)}"
    return f"text_model.{path}" if path.startswith("encoder.layers.") else path


def read_key(key: str) -> tuple[str, Key] | None:
    """(the module as the file writes it, its meaning); None if no dialect reads ``key``.

    Parts have kohya's names: lora_A is lora_down.weight, lora_B is lora_up.weight.
    """
    if key.startswith("bundle_emb."):
        return key, Key("bundled", key.split(".")[1], key.split(".", 2)[-1])
    split = split_word(key)
    found = split_prefix(split[0]) if split else None
    if split is None or found is None:
        return None
    _, role, path = found
    return split[0], make_key(role, path, split[1])


def parse_key(key: str) -> Key | None:
    """Role, canonical layer and part of a key; None if no dialect reads it."""
    found = read_key(key)
    return found and found[1]


def make_key(role: str, path: str, part: str) -> Key:
    if role == "language_model" or path.startswith("llm_adapter."):  # Anima's adapter, filed under the denoiser
        return Key("language_model", path, part)
    return Key(role, find_member(path) or make_canonical(path) if role == "denoiser" else name_text_layer(path), part)


NUMBERED = re.compile(r"(.+\.(?:qkv|linear1))\.(\d)")  # OneTrainer: qkv.0 is the query of a fused qkv, linear1.3 the mlp


def find_member(path: str) -> str | None:
    """`double_blocks.3.img_attn.qkv.1` -> `transformer_blocks.3.attn.to_k`; None where no slice is named."""
    found = NUMBERED.fullmatch(path)
    names = list_members(make_canonical(found[1])) if found else ()
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


def list_members(layer: str) -> tuple[str, ...]:
    """The canonical names of the layers that a fused layer stacks, in the order of their rows; () if it is not fused."""
    for block, fused, names in MEMBERS:
        found = block.match(layer)
        if found and layer[found.end() :] == fused:
            return tuple(found[1] + name for name in names)
    return ()


def find_fused(layer: str) -> str | None:
    """The fused layer that a member belongs to (`...attn.to_k` -> `...attn.to_qkv`); None for any other layer."""
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


def make_natural_order(layer: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key: numbers inside a name compare as numbers (`blocks.2` before `blocks.10`)."""
    return tuple((0, int(word)) if word.isdecimal() else (1, word) for word in re.split(r"(\d+)", layer) if word)
