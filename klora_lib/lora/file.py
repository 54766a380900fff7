"""A LoRA file: its denoiser modules under canonical names, its text-encoder tensors under kohya's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ..errors import LONGEST_NAME, LoraFileError, format_count, list_offenders, shorten
from .build import build_delta, is_finite
from .container import parse_tensors, read_bytes
from .deltas import Delta, Norm
from .duplicates import drop_repeats, join_spellings
from .keys import make_natural_order, read_key, split_word
from .peft import CONFIG, PREFIX, Adapter, find_weights, name_file, read_adapters, read_config_beside
from .rows import arrange_rows
from .text import Text, add_strengths, name_as_kohya

Parts = dict[str, Tensor]
NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class LoraFile:
    """The contents of one file.  Mappings are read-only and sorted by layer (block 2 before block 10).

    modules: the denoiser layers for which the rule chooses, canonical name -> Delta.
    added: norms and lone biases of the denoiser, which are always added.
    text: text-encoder tensors under kohya's names (`lora_te_…`, `lora_te1_…`, `lora_te2_…`), as the file stores them;
        those of a language model under the file's own names.
    foreign_text: whether the text keys were written in another dialect; a WebUI does not load these by itself.
    unknown: keys that no dialect reads.
    bundled: names of the embeddings in the file.
    remarks: what else the user should know, one sentence each.
    metadata: what the trainer wrote into the file's header.
    """

    name: str
    digest: str
    modules: Mapping[str, Delta]
    added: Mapping[str, Delta]
    text: Mapping[str, Tensor]
    foreign_text: bool
    unknown: tuple[str, ...]
    bundled: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What is left out of the file, and what else the user should know of it, one sentence each."""
        if not self.unknown:
            return list(self.remarks)
        n = len(self.unknown)
        are = "is" if n == 1 else "are"
        tensors = f"{format_count(n, 'tensor')} of {self.name!r}"
        example = shorten(self.unknown[0], LONGEST_NAME)
        return [f"{tensors} {are} of no LoRA dialect that is read, {example} among them", *self.remarks]


def read_lora(path: os.PathLike[str] | str, name: str | None = None) -> LoraFile:
    """Read a .safetensors LoRA, the digest (blake2b, hex) and the tensors from the same bytes.

    Args: path: of the file, or of a folder that PEFT saved.  name: how messages call it; see peft.name_of when None.
    Raises LoraFileError if the file is no usable LoRA: one sentence with the name, never with the path.
    """
    name = name_file(path) if name is None else name
    path = find_weights(path)
    if path.suffix.lower() != ".safetensors":
        raise LoraFileError(f"{name!r} {describe_wrong_path(path)}")
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise LoraFileError(f"{name!r} does not exist") from None
    except OSError as error:
        raise LoraFileError(f"{name!r} cannot be opened ({error.strerror})") from None
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.blake2b, data)  # of the time of reading a third, beside what follows
        tensors, metadata = parse_tensors(path, data, name)
        config = read_config_beside(path, tensors, name)
        if config is not None:
            metadata = {**metadata, CONFIG: config.decode(errors="replace")}
        file = lora_file(tensors, name, "", metadata)
        whole = digest.result()
    if config is not None:
        whole.update(config)
    return replace(file, digest=whole.hexdigest())


PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def describe_wrong_path(path: Path) -> str:
    """Says what is wrong with a path that does not end in .safetensors."""
    if path.suffix.lower() in PICKLES:
        return f"is a {path.suffix} file, which may run code when opened: convert it to .safetensors"
    if os.path.isdir(path):
        return "is a folder: choose the .safetensors file in it"
    if os.path.exists(path):
        kind = f"a {path.suffix} file" if path.suffix else "a file without an extension"
        return f"is {kind}, and only .safetensors is read"
    if not path.is_absolute() and len(path.parts) == 2:  # author/model
        return "does not exist on this machine: a model on a hub has to be downloaded first"
    return "does not exist"


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
    layers: dict[str, dict[str, Parts]] = {}  # layer -> module as the file writes it -> its tensors
    texts: list[Text] = []
    bundled: list[str] = []
    unknown: list[str] = []
    for raw in sorted(tensors, key=make_natural_order):  # safetensors gives them in any order
        found, tensor = read_key(raw), tensors[raw]
        if found is None:
            unknown.append(raw)
            continue
        module, key = found
        if key.role == "denoiser":
            layers.setdefault(key.layer, {}).setdefault(module, {})[key.part] = tensor
        elif key.role == "bundled":
            bundled.append(key.layer)
        else:
            texts.append(Text(raw, key, tensor))
    refuse_other_files(name, len(tensors), layers, len(texts), unknown)
    written = [module.removeprefix(PREFIX) for each in layers.values() for module in each]
    known = read_adapters(metadata, name, written)
    wrong = add_strengths(known, texts)
    deltas, misfits = build_all(layers, known.get("denoiser"))
    wrong += misfits + [f"{text.raw} has NaN or infinity" for text in texts if not is_finite(text.tensor)]
    text, differing = name_as_kohya(texts, deltas)
    if wrong := wrong + differing:
        raise LoraFileError(f"{name!r} cannot be used: {list_offenders(wrong)}")
    added = {layer: delta for layer, delta in deltas.items() if isinstance(delta, Norm)}
    modules = {layer: delta for layer, delta in deltas.items() if layer not in added}
    return LoraFile(
        name,
        digest,
        MappingProxyType(modules),
        MappingProxyType(added),
        MappingProxyType(text),
        any(text.foreign for text in texts),
        tuple(unknown),
        tuple(dict.fromkeys(bundled)),
        tuple(list_remarks(name, tensors.keys(), known)),
        MappingProxyType(dict(metadata)),
    )


def list_remarks(name: str, keys: Collection[str], known: Mapping[str, Adapter]) -> list[str]:
    """Says so if PEFT wrote the file and nothing tells its alpha."""
    by_peft = all(key.startswith(PREFIX) and not key.endswith(".alpha") for key in keys)
    if known or not by_peft or not any(".lora_A" in key for key in keys):
        return []
    return [f"{name!r} was saved by PEFT, and no {CONFIG} that tells its strength is beside it: it acts with alpha = rank"]


def build_all(layers: Mapping[str, Mapping[str, Parts]], adapter: Adapter | None) -> tuple[dict[str, Delta], list[str]]:
    """(layer -> Delta, with rows in the model's order, one per weight, sorted by layer; errors)."""
    built: list[tuple[str, str, Delta]] = []
    wrong: list[str] = []
    for layer, spellings in layers.items():
        for module, parts in join_spellings(spellings).items():
            try:
                strength = adapter.strength(module.removeprefix(PREFIX), parts) if adapter else {}
                built.append((layer, module, build_delta(layer, {**parts, **strength})))
            except LoraFileError as error:
                wrong.append(error.message)
    deltas, differing = drop_repeats(arrange_rows(built))
    return {layer: deltas[layer] for layer in sorted(deltas, key=make_natural_order)}, wrong + differing


# --- what is no LoRA, or none of ours ---

PLAIN = ("weight", "bias", "scale_weight", "weight_scale")  # what a model's own parameters are called


def refuse_other_files(
    name: str, total: int, layers: Mapping[str, Mapping[str, Parts]], texts: int, unknown: list[str]
) -> None:
    """Raises LoraFileError if the file is a model, has nothing for the denoiser, or most of it is not read."""
    modules = [(layer, parts) for layer, each in layers.items() for parts in each.values() if "on_input" not in parts]  # IA3
    read = [(layer, part) for layer, parts in modules for part in parts]
    others = [split for key in unknown if (split := split_word(key))]
    plain = [f"{module}.{word}" for module, word in read + others if word in PLAIN]
    if 2 * len(plain) > total:
        example = shorten(plain[0], LONGEST_NAME)
        raise LoraFileError(
            f"{name!r} is a checkpoint or another model's weights, not a LoRA: {example} is one of its {total} tensors"
        )
    if not layers:
        raise LoraFileError(f"{name!r} {describe_nothing_to_use(texts, unknown)}")
    if 2 * len(unknown) > total:
        raise LoraFileError(
            f"{name!r} is for the most part of no LoRA dialect that is read: {len(unknown)} of its {total} tensors, "
            f"{shorten(unknown[0], LONGEST_NAME)} among them"
        )


def describe_nothing_to_use(texts: int, unknown: list[str]) -> str:
    if texts:
        return f"has no denoiser layers, only {format_count(texts, 'text-encoder tensor')}"
    if unknown:
        first = shorten(unknown[0], LONGEST_NAME)
        return f"has no key of any LoRA dialect, the first of its {len(unknown)} being {first}"
    return "has no denoiser layers, only embeddings"


