"""The order of a map's rows: the layers as the model runs them, grouped by block, and what each block is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ..lora.keys import make_natural_order
from ..rule.explain import find_block

# first words of layers' names in the order in which models run them; what is not here comes between the two
FIRST = (
    "conv_in", "time_embedding", "add_embedding", "pos_embed", "patch_embed", "patch_embedding", "x_embedder",
    "context_embedder", "cap_embedder", "txt_norm", "txt_in", "text_proj", "text_embedding", "text_fusion", "time_embed",
    "time_text_embed", "time_projection", "time_mod_proj", "time_guidance_embed", "img_emb",
    "caption_projection", "p_embedder", "llm_adapter", "distilled_guidance_layer", "double_stream_modulation_img",
    "double_stream_modulation_txt", "single_stream_modulation", "noise_refiner", "context_refiner", "down_blocks",
    "mid_block", "up_blocks", "transformer_blocks", "double_stream_blocks", "layers", "blocks", "vace_blocks",
    "single_transformer_blocks", "single_stream_blocks",
)  # fmt: skip
LAST = ("conv_norm_out", "conv_out", "norm_out", "final_layer", "final_norm", "final_linear", "proj_out", "head")
# words within a block, likewise; a resnet comes before the attention of the same number
INNER = (
    "norm1", "norm1_context", "norm", "proj_in", "transformer_blocks", "conv1", "time_emb_proj", "attn", "attn1",
    "self_attn", "attention",
    "to_qkv", "to_qkv_mlp_proj", "to_q", "to_k", "to_v", "q", "k", "v", "to_added_qkv", "add_q_proj", "add_k_proj",
    "add_v_proj", "to_out", "o", "to_add_out", "norm2", "norm2_context", "conv2", "conv_shortcut", "attn2", "cross_attn",
    "norm3", "ff", "ff_context", "feed_forward", "ffn", "net", "proj_mlp", "proj_out",
)  # fmt: skip
NUMBERED = {"resnets": 0, "attentions": 1}
TITLES = (
    (r"down_blocks\.(\d+)", r"down \1"),
    (r"mid_block", "middle"),
    (r"up_blocks\.(\d+)", r"up \1"),
    (r"double_stream_blocks\.(\d+)", r"double \1"),
    (r"single_(?:transformer|stream)_blocks\.(\d+)", r"single \1"),
    (r"(?:transformer_blocks|layers|blocks)\.(\d+)", r"block \1"),
    (r"noise_refiner\.(\d+)", r"noise refiner \1"),
    (r"context_refiner\.(\d+)", r"context refiner \1"),
)


class Group(NamedTuple):
    """Rows ``start`` to ``stop`` - 1 of a map: the layers of one block."""

    title: str
    start: int
    stop: int


class Layout(NamedTuple):
    order: list[int]  # of each row, the number of its layer
    groups: list[Group]


def arrange(names: Sequence[str]) -> Layout:
    """The rows of a map of the layers ``names`` (canonical), in the model's order."""
    order = sorted(range(len(names)), key=lambda i: rank_layer(names[i]))
    two_kinds = any(name.startswith("single_transformer_blocks.") for name in names)  # Flux and its like
    groups: list[Group] = []
    for block, rows in groupby(range(len(names)), key=lambda row: find_block(names[order[row]])):
        first, *others = rows
        groups.append(Group(name_block(block, two_kinds), first, first + len(others) + 1))
    return Layout(order, groups)


def name_block(block: str, two_kinds: bool = False) -> str:
    """``down_blocks.1`` → "down 1", ``mid_block`` → "middle"; ``two_kinds``: whether the model has single blocks too."""
    for pattern, title in TITLES:
        if found := re.fullmatch(pattern, block):
            named = found.expand(title)
            return named.replace("block", "double") if two_kinds and block.startswith("transformer_blocks") else named
    return block.replace("_", " ")


def rank_layer(name: str) -> tuple[Any, ...]:
    """A key by which layers sort in the model's order; layers of unknown names keep a natural order among themselves."""
    block = find_block(name)
    top, number, rest = block.partition(".")[0], block.partition(".")[2], name[len(block) + 1 :].split(".")
    if top in FIRST:
        place = FIRST.index(top)
    else:
        place = len(FIRST) + 1 + LAST.index(top) if top in LAST else len(FIRST)
    inside: list[tuple[int, int]] = []
    if rest[0] in NUMBERED and len(rest) > 1 and rest[1].isdecimal():
        inside, rest = [(int(rest[1]), NUMBERED[rest[0]])], rest[2:]
    elif rest[0] in ("downsamplers", "upsamplers"):
        inside = [(1 << 30, 0)]
    ranks = tuple((int(word), 0) if word.isdecimal() else (INNER.index(word) if word in INNER else 99, 1) for word in rest)
    known = int(number) if number.isdecimal() else 0
    return place, make_natural_order(top), known, tuple(inside), ranks, make_natural_order(name)
