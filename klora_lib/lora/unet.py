"""The compvis UNet (SD1.5, SD2 and SDXL alike) by diffusers' names: two resnets a level, three entries a level."""

from __future__ import annotations

import re

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


def translate_compvis(path: str) -> str | None:
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
        return translate_block(side == "input_blocks", int(n), place, rest)
    return None


def translate_block(down: bool, n: int, place: str, rest: str) -> str:
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
