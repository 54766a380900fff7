"""What a file's header tells a user: base model, type, ranks, layers, trainer, trigger words.  No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoraFileError
from .container import Entry, read_header
from .keys import read_key
from .traits import FROM_THE_TEXT, KINDS

LONGEST_HEADER = 16 << 20  # bytes; a header of 5000 tensors has about 1 MB
MOST_WORDS, LONGEST_WORD = 12, 120
UNETS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}  # by the width of the text
BASES = (  # beginnings of what trainers write as base model or architecture, in lower case
    ("stable-diffusion-xl", "SDXL"), ("sdxl", "SDXL"), ("stable-diffusion-v3", "SD3"), ("stable-diffusion-3", "SD3"),
    ("sd3", "SD3"), ("stable-diffusion-v2", "SD2"), ("sd_v2", "SD2"), ("stable-diffusion-v1", "SD1"), ("sd_v1", "SD1"),
    ("flux", "Flux"), ("chroma", "Chroma"), ("lumina", "Lumina"), ("z-image", "Z-Image"), ("z_image", "Z-Image"),
    ("zimage", "Z-Image"), ("qwen", "Qwen-Image"), ("wan", "Wan"), ("hidream", "HiDream"),
)  # fmt: skip
TYPES = (  # part of a module → type; the first found holds
    (("dora_scale", "lora_magnitude_vector"), "DoRA"), (("hada_w1_a",), "LoHa"), (("lokr_w1", "lokr_w1_a"), "LoKr"),
    (("a1.weight",), "GLoRA"), (("oft_blocks", "oft_diag", "oft_R"), "OFT"), (("on_input",), "IA3"),
    (("lora_down.weight",), "LoRA"), (("diff",), "full"),
)  # fmt: skip
RANKS = {"lora_down.weight": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0, "b1.weight": 0}  # part → which size is it


@dataclass(frozen=True)
class Facts:
    """Of one file.  ``ranks``: least and largest, None where the type has none.  ``base``: "" where nothing tells it."""

    base: str
    kind: str
    ranks: tuple[int, int] | None
    layers: int
    trainer: str
    words: tuple[str, ...]


def read_facts(path: Path, name: str) -> Facts:
    """Of the .safetensors file at ``path``.  Raises LoraFileError with one sentence."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if length > LONGEST_HEADER:
                raise LoraFileError(f"{name!r} is not a safetensors file, or its header is too long to look at")
            data = bytearray(start + file.read(length))
    except OSError as e:
        raise LoraFileError(f"{name!r} cannot be opened ({e.strerror})") from None
    entries, metadata = read_header(data, name)
    return describe_tensors(entries, {k: v for k, v in metadata.items() if isinstance(v, str)})


def describe_tensors(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Facts:
    layers: set[str] = set()
    parts: set[str] = set()
    ranks: list[int] = []
    by_shape = ""
    kinds: set[str] = set()
    for raw, entry in entries.items():
        found = read_key(raw)
        if found is None or found[1].role != "denoiser":
            continue
        _, key = found
        layers.add(key.layer)
        parts.update((key.part, key.part.split(".")[0]))
        if key.part in RANKS and entry.shape:
            ranks.append(entry.shape[RANKS[key.part]])
        kind = KINDS.get(key.layer.partition(".")[0])
        kinds.update([kind] if kind else [])
        is_of_text = key.layer.endswith(FROM_THE_TEXT) and kind == "a UNet" and key.part == "lora_down.weight"
        if is_of_text and len(entry.shape) > 1:
            by_shape = by_shape or UNETS.get(entry.shape[1], "")
    return Facts(
        base=by_shape or find_base(metadata) or next(iter(sorted(kinds)), ""),
        kind=next((kind for words, kind in TYPES if parts.intersection(words)), ""),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        layers=len(layers),
        trainer=find_trainer(metadata),
        words=tuple(find_words(metadata)),
    )


def find_base(metadata: Mapping[str, str]) -> str:
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_network_module"):
        said = metadata.get(key, "").lower().removeprefix("networks.lora_")
        for beginning, base in BASES:
            if said.startswith(beginning):
                return base
    return ""


def find_trainer(metadata: Mapping[str, str]) -> str:
    software = read_json(metadata.get("software", ""))
    name = software.get("name") if isinstance(software, dict) else None
    if isinstance(name, str):
        return name[:40]
    module = metadata.get("ss_network_module", "")
    if module.startswith("lycoris"):
        return "LyCORIS"
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if module or any(key.startswith("ss_") for key in metadata):
        return "kohya"
    return "PEFT" if "lora_adapter_metadata" in metadata else ""


def find_words(metadata: Mapping[str, str]) -> Iterator[str]:
    """The trigger phrase, then the most frequent tags of the training's captions; each once, no more than MOST_WORDS."""
    found: dict[str, None] = dict.fromkeys(split_words(metadata.get("modelspec.trigger_phrase", "")))
    frequency = read_json(metadata.get("ss_tag_frequency", ""))
    counts: dict[str, int] = {}
    for tags in frequency.values() if isinstance(frequency, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, (int, float)) and not isinstance(count, bool):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count if abs(count) < 1e15 else 0)
    found |= dict.fromkeys(sorted(counts, key=lambda tag: -counts[tag])[: 2 * MOST_WORDS])
    yield from list(filter(is_usable, found))[:MOST_WORDS]


def is_usable(word: str) -> bool:
    return bool(word) and len(word) <= LONGEST_WORD and "<" not in word and word.isprintable()


def split_words(text: str) -> list[str]:
    """Split at the commas that are outside of brackets: `(a, b:1.2), c` are two words."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words if word.strip()]


def read_json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
