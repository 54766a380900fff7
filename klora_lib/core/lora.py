"""A LoRA file: its denoiser modules under canonical names, its text-encoder tensors under kohya's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import LoraFileError
from .build import build_delta, finite
from .deltas import Delta, Norm
from .keys import Key, natural, parse_key, split_part
from .peft import CONFIG, PREFIX, Adapter, adapters, config_beside, name_of, weights_in
from .rows import as_in_the_model

SHOWN = 3  # offenders named in a sentence
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

    Args: path: of the file, or of a folder that PEFT saved.  name: how messages call it; see peft.name_of when None.
    Raises LoraFileError, one sentence with that name and never a path, for whatever is not a usable LoRA.
    """
    name = name_of(path) if name is None else name
    path = weights_in(path)
    if path.suffix.lower() != ".safetensors":
        kind = f"a {path.suffix} file" if path.suffix else "a file without an extension"
        raise LoraFileError(f"{name!r} is {kind}, which may run code when opened: convert it to .safetensors")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LoraFileError(f"{name!r} does not exist") from None
    except OSError as error:
        raise LoraFileError(f"{name!r} cannot be opened ({error.strerror})") from None
    tensors, metadata = parse(data, name)
    digest = hashlib.blake2b(data)
    config = config_beside(path, tensors, name)
    if config is not None:
        digest.update(config)
        metadata = {**metadata, CONFIG: config.decode(errors="replace")}
    return lora_file(tensors, name, digest.hexdigest(), metadata)


# --- bytes to tensors ---

DISGUISES = {b"PK": "a pickle", b"\x80": "a pickle", b"version https://git-lfs": "a Git LFS pointer"}


def parse(data: bytes, name: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors and the metadata of a safetensors file's bytes; LoraFileError where they are none."""
    if not data:
        raise LoraFileError(f"{name!r} is an empty file")
    header, metadata = read_header(data, name)
    empty = [key for key, shape in header.items() if 0 in shape]
    if empty:
        raise LoraFileError(f"{name!r} holds {count(len(empty), 'empty tensor')}: {listed(empty)}")
    try:
        return safetensors.torch.load(data), metadata
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise LoraFileError(f"{name!r} is truncated or damaged ({reason})") from None


def read_header(data: bytes, name: str) -> tuple[dict[str, tuple[int, ...]], Mapping[str, str]]:
    """Tensor name -> shape, and the metadata: from the JSON that opens a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length] if 8 + length <= len(data) else b"")
        metadata = header.pop("__metadata__", None) or {}
        return {key: tuple(entry["shape"]) for key, entry in header.items()}, metadata
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        # only now: a sound file may begin with any of these bytes, they are its header's length
        for start, what in DISGUISES.items():
            if data.startswith(start):
                raise LoraFileError(
                    f"{name!r} is {what} under the name .safetensors: convert or download it again"
                ) from None
        raise LoraFileError(
            f"{name!r} is truncated or not a safetensors file ({count(len(data), 'byte')}, no readable header)"
        ) from None


# --- tensors to modules ---


def lora_file(
    tensors: Mapping[str, Tensor], name: str, digest: str = "", metadata: Mapping[str, str] = NO_METADATA
) -> LoraFile:
    """The pure part of read_lora: sort tensors by role and layer, build every module.

    metadata: the file's own, and the text of an adapter_config.json; PEFT adapters have their alpha there.
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
    known = adapters(metadata, name)
    if "denoiser" in known:
        wrong += add_strengths(known["denoiser"], layers, written)
    wrong += add_text_strengths(known, texts)
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


def add_strengths(adapter: Adapter, layers: Mapping[str, dict[str, Tensor]], written: Mapping[str, str]) -> list[str]:
    """Give modules the adapter's alpha where the file has none beside the tensors; what is wrong with the others."""
    wrong: list[str] = []
    for layer, parts in layers.items():
        try:
            parts.update(adapter.strength(as_written(written[layer]), parts))
        except LoraFileError as error:
            wrong.append(error.message)
    return wrong


def add_text_strengths(known: Mapping[str, Adapter], texts: list[Text]) -> list[str]:
    """The same for text-encoder modules, as further ``texts``."""
    modules: dict[tuple[str, str], dict[str, Text]] = {}
    for text in texts:
        if text.foreign and text.key.role in known:
            modules.setdefault(text.key[:2], {})[text.key.part] = text
    wrong: list[str] = []
    for (role, _), parts in modules.items():
        one = next(iter(parts.values()))
        try:
            strength = known[role].strength(as_written(one.raw), {part: text.tensor for part, text in parts.items()})
            texts += [Text(one.raw, one.key._replace(part=part), tensor) for part, tensor in strength.items()]
        except LoraFileError as error:
            wrong.append(error.message)
    return wrong


def as_written(raw: str) -> str:
    """The module's path in a key, with the names of the model that was trained."""
    module, _ = split_part(raw.removeprefix(PREFIX)) or (raw, "")
    return module


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


# --- sentences ---


def listed(offenders: list[str]) -> str:
    """The first few offenders, and how many more."""
    more = len(offenders) - SHOWN
    return "; ".join(offenders[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
