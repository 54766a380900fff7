"""Baked LoRAs as files on disk, with what they are in their headers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from .. import __version__
from ..errors import SettingsError
from ..lora.file import LoraFile
from ..lora.peft import find_weights
from ..rule.pairing import Pair
from ..rule.plan import Plan
from ..settings import DEFAULTS, Settings
from .bake import Baked, bake
from .segments import Segment, describe_use, split_schedule

ENDING = ".safetensors"
AGREEING = (  # fields of a header that still hold if both files say the same, or one says nothing
    "ss_base_model_version", "ss_sd_model_name", "ss_sd_model_hash", "ss_v2", "ss_clip_skip", "modelspec.architecture",
    "modelspec.implementation", "modelspec.prediction_type", "modelspec.resolution", "modelspec.encoder_layer",
)  # fmt: skip
JOINED = ("modelspec.trigger_phrase", "modelspec.tags", "modelspec.author", "modelspec.license", "modelspec.usage_hint")


@dataclass(frozen=True)
class Wish:
    """What the user wants saved.

    path: of the file; of several, the number is added to its name.  segments: how many files; None for one.
    form, rank, precision: see ``bake``.  overwrite: whether a file that is there may be replaced.
    """

    path: Path
    segments: int | None = None
    form: str | None = None
    rank: int | None = None
    precision: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Saved:
    """What was written: the files, and what the user should know, one sentence each; ``use``: how to draw with them."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    use: str


def save_parts(pair: Pair, plan: Plan, steps: int, files: Sequence[str | os.PathLike[str]], wish: Wish) -> Saved:
    """Bake what ``plan`` does in ``steps`` steps, and write it.  ``files``: the paths of content and style.

    All is written, or nothing.  Raises SettingsError for a path that cannot be written and PairError for a pair that cannot
    be baked.
    """
    segments = split_schedule(plan, steps, wish.segments)
    paths = [number_path(wish.path, segment) for segment in segments]
    for path in paths:
        refuse_path(path, wish.overwrite)
    hashes = [hash_file(path) for path in files]
    notes: dict[str, None] = {}
    partial: list[Path] = []
    try:
        for segment, path in zip(segments, paths):
            baked = bake(
                pair, plan, segment.masks, plan.settings.weights, form=wish.form, rank=wish.rank, precision=wish.precision,
                with_text=segment.number == 1,
            )  # fmt: skip
            partial.append(path.with_name(f"{path.name}.{os.getpid()}.partial"))
            write(partial[-1], baked, describe(pair, plan.settings, hashes, segment, path.stem, baked))
            notes |= dict.fromkeys(baked.notes)
        for path in paths:  # once more: it may have come into being meanwhile
            refuse_path(path, wish.overwrite)
        put_in_place(partial, paths)
    finally:
        for path in partial:
            with suppress(OSError):  # normally it has been renamed
                path.unlink()
    use = describe_use([path.stem for path in paths], segments, steps)
    return Saved(tuple(paths), tuple(notes), use)


def number_path(path: Path, segment: Segment) -> Path:
    return path if segment.of == 1 else path.with_name(f"{path.stem}-{segment.number}{path.suffix}")


def refuse_path(path: Path, overwrite: bool) -> None:
    """Raise SettingsError for a path at which no file can be written."""
    if path.suffix != ENDING:
        raise SettingsError(f"must end in {ENDING}, not {path.name!r}", "out")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"is in a folder that does not exist, {str(path.parent)!r}"
        raise SettingsError(f"{path.name!r} {what}", "out")
    if path.exists() and not overwrite:
        raise SettingsError(f"{path.name!r} exists already, and is not replaced unless you say so", "out")


def write(path: Path, baked: Baked, metadata: Mapping[str, str]) -> None:
    try:
        save_file(dict(baked.tensors), path, dict(metadata))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SettingsError(f"{path.name.split('.')[0]!r} cannot be written: {reason}", "out") from None


def put_in_place(partial: Sequence[Path], paths: Sequence[Path]) -> None:
    done: list[Path] = []
    try:
        for source, path in zip(partial, paths):
            os.replace(source, path)
            done.append(path)
    except OSError as error:
        for path in done:
            path.unlink()
        raise SettingsError(f"{paths[len(done)].name!r} cannot be written: {error.strerror}", "out") from None


# --- headers ---


def describe(
    pair: Pair, settings: Settings, hashes: Sequence[str], segment: Segment, name: str, baked: Baked
) -> dict[str, str]:
    """The header of a file: where it is from, and what of the sources' headers still holds."""
    files = (pair.content, pair.style)
    own = replace(settings, content=files[0].name, style=files[1].name)
    chosen = {field: value for field, value in asdict(own).items() if value != DEFAULTS[field] and field != "enabled"}
    words = join_field(files, "modelspec.trigger_phrase")
    return {
        **{field: value for field in AGREEING if (value := find_agreed(files, field))},
        **{field: value for field in JOINED if (value := join_field(files, field))},
        **join_frequencies(files),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(baked.rank),
        "ss_network_alpha": str(baked.rank),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.merged_from": ", ".join(file.name for file in files),
        "modelspec.description": describe_origin(files, settings.method, segment, words),
        "klora.version": __version__,
        "klora.content": files[0].name,
        "klora.content_sha256": hashes[0],
        "klora.style": files[1].name,
        "klora.style_sha256": hashes[1],
        "klora.settings": json.dumps(chosen, ensure_ascii=False),
        "klora.segment": f"{segment.number} of {segment.of}, steps {segment.first + 1} to {segment.last}",
    }


def describe_origin(files: Sequence[LoraFile], method: str, segment: Segment, words: str) -> str:
    part = "" if segment.of == 1 else f", part {segment.number} of {segment.of} of the steps"
    told = f"{files[0].name} in the style of {files[1].name}, joined by K-LoRA's method {method}{part}"
    return f"{told}; trigger words: {words}" if words else told


def find_agreed(files: Sequence[LoraFile], field: str) -> str:
    """What the files that have this field say, if it is the same; else nothing."""
    said = {file.metadata[field] for file in files if file.metadata.get(field)}
    return said.pop() if len(said) == 1 else ""


def join_field(files: Sequence[LoraFile], field: str) -> str:
    return ", ".join(dict.fromkeys(file.metadata[field] for file in files if file.metadata.get(field)))


def join_frequencies(files: Sequence[LoraFile]) -> dict[str, str]:
    """kohya's count of the words in the captions, by folder, of both; what is no such table is left out."""
    found: dict[str, object] = {}
    for file in files:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            for folder, words in json.loads(file.metadata.get("ss_tag_frequency", "{}")).items():
                found[folder if folder not in found else f"{folder} ({file.name})"] = words
    return {"ss_tag_frequency": json.dumps(found, ensure_ascii=False)} if found else {}


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 in hexadecimal, by which sites list LoRAs."""
    digest = hashlib.sha256()
    with open(find_weights(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
