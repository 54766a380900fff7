"""The text-encoder part of a LoRA file, under kohya's names, which every WebUI reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import LoraFileError
from .deltas import Delta
from .keys import Key, split_word
from .peft import PREFIX, Adapter

KOHYA_TEXT = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")


class Text(NamedTuple):
    """One text-encoder tensor, its key as written and as parsed."""

    raw: str
    key: Key
    tensor: Tensor

    @property
    def foreign(self) -> bool:
        """Whether kohya has another name for this key.

        No WebUI reads Chroma's T5 under OneTrainer's prefix `lora_te_`.
        """
        if self.key.role == "language_model":
            return False
        return not self.raw.startswith(KOHYA_TEXT) or self.raw.startswith("lora_te_encoder_block_")


def name_as_kohya(texts: list[Text], deltas: Mapping[str, Delta]) -> tuple[dict[str, Tensor], list[str]]:
    """(text-encoder tensors under kohya's names, errors); kohya's own keys do not change."""
    several = is_transformer(deltas) or is_sdxl(deltas) or any(text.key.role == "text_encoder_2" for text in texts)
    prefixes = {"text_encoder": "lora_te1_" if several else "lora_te_", "text_encoder_2": "lora_te2_"}
    named: dict[str, Tensor] = {}
    wrong: list[str] = []
    for text in texts:
        name, tensor = make_kohya_key(text, prefixes) if text.foreign else (text.raw, text.tensor)
        if name in named and not torch.equal(named[name], tensor):
            wrong.append(f"{name} is in it twice, once as {text.raw}, and the two differ")
        named[name] = tensor
    return named, wrong


def make_kohya_key(text: Text, prefixes: Mapping[str, str]) -> tuple[str, Tensor]:
    """kohya's key, and the tensor in kohya's shape."""
    _, layer, part = text.key
    t5 = layer.startswith("encoder.block.")  # diffusers' text_encoder_2 of Flux is kohya's third
    prefix = "lora_te3_" if t5 else prefixes.get(text.key.role, "lora_te3_")
    magnitude = part == "lora_magnitude_vector"  # [out], by output row
    tensor = text.tensor.reshape(-1, 1) if magnitude else text.tensor
    return f"{prefix}{layer.replace('.', '_')}.{'dora_scale' if magnitude else part}", tensor


def is_transformer(modules: Iterable[str]) -> bool:
    """Whether the denoiser is no UNet (Flux, SD3, …)."""
    blocks = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.")
    return not any(layer.startswith(blocks) for layer in modules)


def is_sdxl(modules: Mapping[str, Delta]) -> bool:
    """Whether the UNet is SDXL's: deep attention blocks, a 2048-wide context, or the size embedding."""
    return any(
        layer.startswith("add_embedding.")
        or (".attentions." in layer and ".transformer_blocks." in layer and ".transformer_blocks.0." not in layer)
        or (layer.endswith(("attn2.to_k", "attn2.to_v")) and delta.shape[1] == 2048)
        for layer, delta in modules.items()
    )


def add_strengths(known: Mapping[str, Adapter], texts: list[Text]) -> list[str]:
    """Add the strengths from the adapters' configurations to ``texts``, and return the errors."""
    modules: dict[tuple[str, str], dict[str, Text]] = {}
    for text in texts:
        if text.foreign and text.key.role in known:
            modules.setdefault(text.key[:2], {})[text.key.part] = text
    wrong: list[str] = []
    for (role, _), parts in modules.items():
        one = next(iter(parts.values()))
        module, _ = split_word(one.raw.removeprefix(PREFIX)) or (one.raw, "")
        try:
            strength = known[role].strength(module, {part: text.tensor for part, text in parts.items()})
            texts += [Text(one.raw, one.key._replace(part=part), tensor) for part, tensor in strength.items()]
        except LoraFileError as error:
            wrong.append(error.message)
    return wrong
