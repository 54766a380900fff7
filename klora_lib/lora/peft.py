"""The strength of PEFT adapters, which is not beside the tensors: diffusers keeps it in the file's metadata, PEFT in
``adapter_config.json``, a file of its own in the same folder."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFileError

ENTRY = "lora_adapter_metadata"  # in the metadata, a JSON object whose keys open with the component: "unet.lora_alpha", …
CONFIG = "adapter_config.json"  # we add its text to the metadata under this name
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every key in a file that PEFT wrote
COMPONENTS = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}  # PEFT's types that we read: their word for alpha
TYPES = {"lora_": "LORA", "hada_": "LOHA", "lokr_": "LOKR", "oft_R": "OFT", "boft_R": "BOFT", "ia3_l": "IA3"}
MULTIPLIED = ("OFT", "BOFT", "IA3")  # those that have none
RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # [rank, …], of a module that has one of them
UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error)  # what a damaged text raises
# initialisations that take the adapter's first value out of the model's weights: it is right on those weights alone
CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """The alpha of one component's configuration, and its rank (None if only the tensors tell it)."""

    alpha: float
    peft_type: str = ""  # of the configuration; "" if it does not say
    patterns: Mapping[str, float] = field(default_factory=dict)  # layer, or its end, or a regular expression → alpha
    rank_stabilised: bool = False
    rank: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)  # the same → rank
    turning: Mapping[str, float] = field(default_factory=dict)  # of an OFT: words of multiplied.oft_r
    targets: str | tuple[str, ...] = ()  # the modules that were trained: ends of names, or an expression
    on_input: str | tuple[str, ...] = ()  # of an IA3: the modules whose input it scales, ends of names or an expression

    def strength(self, path: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The ``alpha`` or ``scale`` that a module's ``parts`` lack; for OFT and IA3, the options that they need.

        Args: path: the module's, with the names of the model that was trained.
        Raises LoraFileError if the configuration is for another type, or has another rank, than the tensors.
        """
        if (own_type := find_peft_type(parts)) and self.peft_type not in ("", own_type):
            raise LoraFileError(
                f"{path} is of PEFT's type {own_type}, where the {CONFIG} beside the file is of type {self.peft_type}: "
                "it belongs to another file"
            )
        if "oft_R" in parts:
            return {word: torch.tensor(value) for word, value in self.turning.items()}
        if "ia3_l" in parts:
            return {"on_input": torch.tensor(self.scales_input(path))}
        word = next((word for word in RANKED if word in parts), None)
        if "alpha" in parts or not (word or "lokr_w1" in parts):
            return {}
        rank = self.rank_of(path)
        if word is not None:
            own = parts[word].shape[0] if parts[word].dim() else 0
            if rank not in (None, own):
                raise LoraFileError(f"{path} has rank {own}, where the {CONFIG} beside the file says {rank}")
            return {"alpha": torch.tensor(self.alpha_of(path, own))}
        # two whole Kronecker factors, which in PEFT have a scale all the same
        return {"scale": torch.tensor(self.alpha_of(path, rank) / rank)} if rank else {}

    def alpha_of(self, path: str, rank: int) -> float:
        """The alpha by which scale = alpha/rank is right: rank-stabilised LoRA means alpha/√rank (arXiv 2312.03732)."""
        alpha = find_first_match(self.patterns, path, self.alpha)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha

    def covers(self, path: str) -> bool:
        """Whether the configuration says that it is for this module; True if it does not say for which."""
        if isinstance(self.targets, str):
            return self.targets == "all-linear" or re.fullmatch(self.targets, path) is not None
        return not self.targets or any(path == target or path.endswith("." + target) for target in self.targets)

    def scales_input(self, path: str) -> bool:
        if isinstance(self.on_input, str):
            return re.fullmatch(self.on_input, path) is not None
        return path.endswith(self.on_input)

    def rank_of(self, path: str) -> int | None:
        return None if self.rank is None else int(find_first_match(self.ranks, path, self.rank))


def find_peft_type(parts: Mapping[str, Tensor]) -> str | None:
    """The type that PEFT has for a module with these tensors."""
    return next((kind for word, kind in TYPES.items() if any(part.startswith(word) for part in parts)), None)


def find_first_match(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if matches(pattern, path)), default)


def matches(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None
    except re.error:
        return path == pattern or path.endswith("." + pattern)


def read_adapters(metadata: Mapping[str, str], name: str, modules: Collection[str] = ()) -> dict[str, Adapter]:
    """Role → configuration; empty if there is none, or if the one beside the file is for other ``modules``.

    Args: metadata: a safetensors file's own, and the text of the configuration beside it under CONFIG.
    Raises LoraFileError for a configuration beside the file that is not read.  Unreadable metadata are ignored.
    """
    if CONFIG in metadata:
        found = read_config(metadata[CONFIG], name)
        ours = not modules or any(found.covers(path) for path in modules)
        return dict.fromkeys(COMPONENTS.values(), found) if ours else {}
    try:
        entries = json.loads(metadata.get(ENTRY, "{}"))
        return {role: read_adapter(entries, each) for each, role in COMPONENTS.items() if f"{each}.lora_alpha" in entries}
    except UNREADABLE:
        return {}


def read_adapter(entries: Mapping[str, Any], component: str) -> Adapter:
    patterns = entries.get(f"{component}.alpha_pattern") or {}
    return Adapter(
        float(entries[f"{component}.lora_alpha"]),
        "LORA",
        {str(layer): float(alpha) for layer, alpha in patterns.items()},
        bool(entries.get(f"{component}.use_rslora")),
    )


def read_config(text: str, name: str) -> Adapter:
    """What an adapter_config.json says.  Raises LoraFileError."""
    try:
        config = json.loads(text)
        kind = str(config["peft_type"])
        start = config.get("init_lora_weights")
        if kind in MULTIPLIED:
            modules = read_modules(config, TARGETS), read_modules(config, FEEDFORWARD)
            return Adapter(1.0, kind, turning=read_turning(config), targets=modules[0], on_input=modules[1])
        if kind not in ALPHA:
            raise LoraFileError(f"{name!r} is a PEFT adapter of type {kind}, which is not read")
        if isinstance(start, str) and start.startswith(CHANGES_THE_MODEL):
            raise LoraFileError(
                f"{name!r} began as {start!r}, which changes the model's own weights too: have PEFT save it as a plain LoRA "
                "(path_initial_model_for_weight_conversion)"
            )
        return Adapter(
            float(config[ALPHA[kind]]),
            kind,
            {str(layer): float(alpha) for layer, alpha in (config.get("alpha_pattern") or {}).items()},
            bool(config.get("use_rslora")),
            int(config["r"]),
            {str(layer): int(rank) for layer, rank in (config.get("rank_pattern") or {}).items()},
            targets=read_modules(config, TARGETS),
        )
    except (*UNREADABLE, KeyError) as error:
        raise make_unreadable_error(name, f"it has no {error}" if isinstance(error, KeyError) else error) from None


def read_turning(config: Mapping[str, Any]) -> dict[str, float]:
    """How an OFT's matrices are made from the stored numbers: with a series or exactly, and within COFT's bound."""
    exact = not config.get("use_cayley_neumann", False)  # before there was a choice, it was none
    terms = {"neumann_terms": 0.0 if exact else float(config.get("num_cayley_neumann_terms", 5))}
    return {**terms, "coft": float(config.get("eps", 6e-5))} if config.get("coft") else terms


TARGETS, FEEDFORWARD = "target_modules", "feedforward_modules"


def read_modules(config: Mapping[str, Any], key: str) -> str | tuple[str, ...]:
    modules = config.get(key) or ()
    return re.compile(modules).pattern if isinstance(modules, str) else tuple(map(str, modules))


def make_unreadable_error(name: str, reason: object) -> LoraFileError:
    return LoraFileError(f"{name!r} has an {CONFIG} beside it that cannot be read ({reason})")


# --- folders ---


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The file of weights in a folder that PEFT saved; any other path as it is."""
    weights = Path(path) / WEIGHTS
    return weights if os.path.isfile(weights) else Path(path)  # False too for a path that cannot be looked at


def name_file(path: str | os.PathLike[str]) -> str:
    """The name of a LoRA: its file's stem, or the name of the folder that PEFT saved."""
    weights = find_weights(path)
    return weights.absolute().parent.name if weights.name == WEIGHTS else weights.stem


def read_config_beside(path: Path, keys: Iterable[str], name: str) -> bytes | None:
    """The bytes of the adapter_config.json beside a file with these ``keys``; None if there is none for this file.

    A folder of LoRAs can hold files of many trainers and one adapter_config.json, which belongs to PEFT's file.
    """
    if not all(key.startswith(PREFIX) for key in keys):
        return None
    try:
        return (path.parent / CONFIG).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise make_unreadable_error(name, error.strerror) from None
