"""A LoRA file: its denoiser modules under canonical names, its text-encoder tensors under kohya's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import LoraFileError, count, listed
from .build import build_delta, finite
from .container import parse, read_whole
from .deltas import Delta, Norm
from .keys import Key, natural, parse_key
from .peft import Adapter, adapters
from .rows import as_in_the_model

NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What one file brings. Mappings are read-only and sorted by layer, numbers as numbers.

    modules: denoiser layers the rule chooses between, canonical name -> Delta.
    added: denoiser norms and lone biases, which are added and not chosen.
    text: text-encoder tensors under kohya names (`lora_te_…`, `lora_te1_…`, `lora_te2_…`), as the file stores them;
        those of a language model under the file's own names.
    foreign_text: the file's own text keys were of another dialect, so a WebUI does not load them by itself.
    unknown: keys no dialect resolves.
    """

    name: str
    digest: str
    modules: Mapping[str, Delta]
    added: Mapping[str, Delta]
    text: Mapping[str, Tensor]
    foreign_text: bool
    unknown: tuple[str, ...]


def read_lora(path: os.PathLike[str] | str, name: str | None = None) -> LoraFile:
    """Read a .safetensors LoRA, the digest (blake2b, hex) and the tensors from the same bytes.

    Args: name: how messages call it; the file's stem when None.
    Raises LoraFileError, one sentence with that name and never a path, for whatever is not a usable LoRA.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if path.suffix.lower() != ".safetensors":
        kind = f"a {path.suffix} file" if path.suffix else "a file without an extension"
        raise LoraFileError(f"{name!r} is {kind}, which may run code when opened: convert it to .safetensors")
    try:
        data = read_whole(path)
    except FileNotFoundError:
        raise LoraFileError(f"{name!r} does not exist") from None
    except OSError as error:
        raise LoraFileError(f"{name!r} cannot be opened ({error.strerror})") from None
    tensors, metadata = parse(path, data, name)
    return lora_file(tensors, name, hashlib.blake2b(data).hexdigest(), metadata)


# --- tensors to modules ---


def lora_file(
    tensors: Mapping[str, Tensor], name: str, digest: str = "", metadata: Mapping[str, str] = NO_METADATA
) -> LoraFile:
    """The pure part of read_lora: sort tensors by role and layer, build every module.

    metadata: the file's own; PEFT adapters have their alpha there.
    Raises LoraFileError naming the first few offenders and how many more there are.
    """
    if not tensors:
        raise LoraFileError(f"{name!r} holds no tensors")
    layers: dict[str, dict[str, Tensor]] = {}
    written: dict[str, str] = {}  # layer -> one of its keys
    texts: list[Text] = []
    unknown: list[str] = []
    wrong: list[str] = []
    for raw in sorted(tensors, key=natural):  # safetensors gives them in any order
        key, tensor = parse_key(raw), tensors[raw]
        if key is None:
            unknown.append(raw)
        elif key.role == "denoiser":
            parts = layers.setdefault(key.layer, {})
            if key.part in parts:
                wrong.append(f"{key.layer} has {key.part} twice, once as {raw}")
            parts[key.part] = tensor
            written[key.layer] = raw
        elif key.role != "bundled":
            texts.append(Text(raw, key, tensor))
    if not layers:
        raise LoraFileError(f"{name!r} {nothing_to_use(len(texts), unknown)}")
    known = adapters(metadata)
    if "denoiser" in known:
        layers = {layer: with_alpha(known["denoiser"], layer, parts) for layer, parts in layers.items()}
    texts += missing_alphas(known, texts)
    deltas, misfits = build_all(layers, written)
    wrong += misfits + [f"{text.raw} has NaN or infinity" for text in texts if not finite(text.tensor)]
    if wrong:
        raise LoraFileError(f"{name!r} cannot be used: {listed(wrong)}")
    added = {layer: delta for layer, delta in deltas.items() if isinstance(delta, Norm)}
    modules = {layer: delta for layer, delta in deltas.items() if layer not in added}
    return LoraFile(
        name,
        digest,
        MappingProxyType(modules),
        MappingProxyType(added),
        MappingProxyType(kohya_named(texts, deltas)),
        any(text.foreign for text in texts),
        tuple(unknown),
    )


def with_alpha(adapter: Adapter, layer: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """``parts`` of a plain LoRA with the adapter's alpha, where the file has none beside the tensors."""
    if "alpha" in parts or "lora_down.weight" not in parts:
        return parts
    return {**parts, "alpha": torch.tensor(adapter.alpha_of(layer, parts["lora_down.weight"].shape[0]))}


def missing_alphas(known: Mapping[str, Adapter], texts: list[Text]) -> list[Text]:
    """The alphas that the metadata has for text-encoder modules and the tensors have not."""
    have = {text.key[:2] for text in texts if text.key.part == "alpha"}
    ours = [t for t in texts if t.foreign and t.key.role in known and t.key[:2] not in have]
    downs = [t for t in ours if t.key.part == "lora_down.weight"]
    alphas = [known[t.key.role].alpha_of(t.key.layer, t.tensor.shape[0]) for t in downs]
    return [Text(t.raw, t.key._replace(part="alpha"), torch.tensor(a)) for t, a in zip(downs, alphas, strict=True)]


def nothing_to_use(texts: int, unknown: list[str]) -> str:
    if texts:
        return f"has no denoiser layers, only {count(texts, 'text-encoder tensor')}"
    if unknown:
        return f"has no key of any LoRA dialect, the first of its {len(unknown)} being {unknown[0]}"
    return "has no denoiser layers, only embeddings"


def build_all(layers: Mapping[str, Mapping[str, Tensor]], written: Mapping[str, str]) -> tuple[dict[str, Delta], list[str]]:
    """(layer -> Delta with its rows as in the model, sorted by layer; what is wrong with the others)."""
    deltas: dict[str, Delta] = {}
    wrong: list[str] = []
    for layer, parts in layers.items():
        try:
            deltas[layer] = build_delta(layer, parts)
        except LoraFileError as error:
            wrong.append(error.message)
    deltas = as_in_the_model(deltas, written)
    return {layer: deltas[layer] for layer in sorted(deltas, key=natural)}, wrong


# --- text encoders ---

KOHYA_TEXT = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")


class Text(NamedTuple):
    """One text-encoder tensor, its key as written and as parsed."""

    raw: str
    key: Key
    tensor: Tensor

    @property
    def foreign(self) -> bool:
        """Whether the key is not as kohya writes it, though kohya has a name for it.

        Chroma's T5 as OneTrainer's `lora_te_` is known to no WebUI.
        """
        if self.key.role == "language_model":
            return False
        return not self.raw.startswith(KOHYA_TEXT) or self.raw.startswith("lora_te_encoder_block_")


def kohya_named(texts: list[Text], deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """Text-encoder tensors under kohya's names; kohya's own keys stay as they are."""
    several = is_transformer(deltas) or is_sdxl(deltas) or any(text.key.role == "text_encoder_2" for text in texts)
    prefixes = {"text_encoder": "lora_te1_" if several else "lora_te_", "text_encoder_2": "lora_te2_"}
    named: dict[str, Tensor] = {}
    for text in texts:
        if not text.foreign:
            named[text.raw] = text.tensor
            continue
        _, layer, part = text.key
        t5 = layer.startswith("encoder.block.")  # diffusers' text_encoder_2 of Flux is kohya's third
        prefix = "lora_te3_" if t5 else prefixes.get(text.key.role, "lora_te3_")
        magnitude = part == "lora_magnitude_vector"  # [out], by output row
        tensor = text.tensor.reshape(-1, 1) if magnitude else text.tensor
        named[f"{prefix}{layer.replace('.', '_')}.{'dora_scale' if magnitude else part}"] = tensor
    return named


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
