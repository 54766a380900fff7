"""Baked LoRAs as files on disk, with what they are in their headers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save as serialize

from .. import __version__
from ..errors import SettingsError, format_count, quote_first_line
from ..lora.file import LoraFile
from ..lora.peft import find_weights
from ..rule.pairing import Pair
from ..rule.plan import Plan
from ..settings import DEFAULTS, quote_value
from .bake import Baked, bake
from .segments import Segment, describe_use, split_schedule

ENDING = ".safetensors"
AGREEING = (  # fields of a header that still hold if both files say the same, or one says nothing
    "ss_base_model_version", "ss_sd_model_name", "ss_sd_model_hash", "ss_v2", "ss_clip_skip", "modelspec.architecture",
    "modelspec.implementation", "modelspec.prediction_type", "modelspec.resolution", "modelspec.encoder_layer",
)  # fmt: skip
UNTAGGED = re.compile(r'[<>:"=,\n\r]')  # characters that mean something else in a prompt's tag
LONGEST, MOST_FOLDERS, MOST_WORDS = 4000, 20, 200  # characters of a field; of kohya's counts of words
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
    if len(segments) > 1 and plan.settings.progress == "noise":
        raise SettingsError("must be 'steps' for a file for each part of the steps, not 'noise'", "progress")
    paths = [number_path(wish.path, segment) for segment in segments]
    for path in paths:
        refuse_path(path, wish.overwrite, files)
    hashes = [hash_file(path) for path in files]
    notes = dict.fromkeys([*pair.content.notes, *pair.style.notes, *plan.notes, *describe_left_out(pair, plan)])
    partial: list[Path] = []
    try:
        for segment, path in zip(segments, paths):
            baked = bake(
                pair, plan, segment.masks, plan.settings.weights, form=wish.form, rank=wish.rank, precision=wish.precision,
                with_text=segment.number == 1,
            )  # fmt: skip
            partial.append(name_partial(path))
            write(partial[-1], path, baked, describe(pair, plan, hashes, segment, path.stem, baked))
            notes |= dict.fromkeys(baked.notes)
        for path in paths:  # once more: it may have come into being meanwhile
            refuse_path(path, wish.overwrite, files)
        put_in_place(partial, paths)
    finally:
        for path in partial:
            with suppress(OSError):  # normally it has been renamed
                path.unlink()
    if UNTAGGED.search(paths[0].stem):
        notes[f"a prompt's tag cannot hold the name {quote_value(paths[0].stem)}: a WebUI needs another one"] = None
    use = describe_use([path.stem for path in paths], segments, steps)
    return Saved(tuple(paths), tuple(notes), use)


def number_path(path: Path, segment: Segment) -> Path:
    return path if segment.of == 1 else path.with_name(f"{path.stem}-{segment.number}{path.suffix}")


def describe_left_out(pair: Pair, plan: Plan) -> Iterator[str]:
    """What a saved file does not have of the two, one sentence each."""
    for file in (pair.content, pair.style):
        if file.bundled:
            yield f"the {format_count(len(file.bundled), 'embedding')} in {file.name!r} ({file.bundled[0]}) are not saved"
    if plan.settings.method == "random":
        yield f"the method random is saved as it is for the seed {plan.facts.seed}"


def refuse_path(path: Path, overwrite: bool, sources: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Raise SettingsError for a path at which no file can be written, or one of the ``sources`` is."""
    if path.suffix != ENDING:
        raise SettingsError(f"must end in {ENDING}, not {quote_value(path.name)}", "out")
    if not path.parent.is_dir():
        raise SettingsError(f"{path.name!r} is in a folder that does not exist, {str(path.parent)!r}", "out")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # too long, or no text of the file system's
        raise SettingsError(f"no file can have the name {quote_value(path.name)}: {describe_error(error)}", "out") from None
    if path.is_dir():
        raise SettingsError(f"{path.name!r} is a folder", "out")
    if any(os.path.realpath(path) == os.path.realpath(find_weights(source)) for source in sources):
        raise SettingsError(f"{path.name!r} is one of the two LoRAs that are joined, and is not replaced", "out")
    if not overwrite:
        raise SettingsError(f"{path.name!r} exists already, and is not replaced unless you say so", "out")


def describe_error(error: Exception) -> str:
    """The system's word for it; else the error's first line."""
    return str(getattr(error, "strerror", None) or quote_first_line(error))


def name_partial(path: Path) -> Path:
    """A name beside ``path`` that nobody else has."""
    return path.with_name(f"{path.stem[:40]}.{uuid4().hex}.partial")


def write(partial: Path, path: Path, baked: Baked, metadata: Mapping[str, str]) -> None:
    try:
        data = serialize(dict(baked.tensors), dict(metadata))
        with open(partial, "xb") as file:  # safetensors' own files may be read by nobody else
            file.write(data)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{path.stem!r} cannot be written: {describe_error(error)}", "out") from None


def put_in_place(partial: Sequence[Path], paths: Sequence[Path]) -> None:
    """Rename all, or none: what was there before is kept aside until all are in their place."""
    aside: dict[Path, Path] = {}  # what was there
    done: list[Path] = []
    try:
        for source, path in zip(partial, paths):
            if path.exists():
                os.replace(path, kept := name_partial(path))
                aside[path] = kept
            os.replace(source, path)
            done.append(path)
    except OSError as error:
        for new in done:
            new.unlink()
        for place, old in aside.items():
            os.replace(old, place)
        raise SettingsError(f"{path.name!r} cannot be written: {describe_error(error)}", "out") from None
    for old in aside.values():
        with suppress(OSError):  # it is open somewhere
            old.unlink()


# --- headers ---


def describe(
    pair: Pair, plan: Plan, hashes: Sequence[str], segment: Segment, name: str, baked: Baked
) -> dict[str, str]:
    """The header of a file: where it is from, and what of the sources' headers still holds."""
    files, settings = (pair.content, pair.style), plan.settings
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
        "klora.steps": str(plan.facts.steps),
        "klora.segment": f"{segment.number} of {segment.of}, steps {segment.first + 1} to {segment.last}",
        **({"klora.seed": str(plan.facts.seed)} if settings.method == "random" else {}),
    }


def describe_origin(files: Sequence[LoraFile], method: str, segment: Segment, words: str) -> str:
    part = "" if segment.of == 1 else f", part {segment.number} of {segment.of} of the steps"
    told = f"{files[0].name} in the style of {files[1].name}, joined by K-LoRA's method {method}{part}"
    return f"{told}; trigger words: {words}" if words else told


def find_agreed(files: Sequence[LoraFile], field: str) -> str:
    """What the files that have this field say, if it is the same; else nothing."""
    said = {file.metadata[field] for file in files if file.metadata.get(field)}
    return said.pop()[:LONGEST] if len(said) == 1 else ""


def join_field(files: Sequence[LoraFile], field: str) -> str:
    return ", ".join(dict.fromkeys(file.metadata[field][:LONGEST] for file in files if file.metadata.get(field)))


def join_frequencies(files: Sequence[LoraFile]) -> dict[str, str]:
    """kohya's counts of the most frequent words in the captions, by folder, of both; what is no such table is left out."""
    found: dict[str, dict[str, int]] = {}
    for file in files:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            for folder, words in list(json.loads(file.metadata.get("ss_tag_frequency", "{}")).items())[:MOST_FOLDERS]:
                counts = {word[:100]: count for word, count in words.items() if isinstance(count, int)}
                most = sorted(counts, key=lambda word: -counts[word])[:MOST_WORDS]
                key = folder[:100] if folder not in found else f"{folder[:100]} ({file.name})"
                found[key] = {word: counts[word] for word in most}
    return {"ss_tag_frequency": json.dumps(found, ensure_ascii=False)} if found else {}


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 in hexadecimal, by which sites list LoRAs."""
    digest = hashlib.sha256()
    with open(find_weights(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
