"""From the names in the settings to two listed LoRAs, and to what they do on the loaded model or by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch

from ..engine.fusion import Fusion, Target, blame_both, fuse_files
from ..errors import KLoraError, SettingsError, join_errors
from ..hosts.contract import Entry, Host
from ..rule.cache import Library
from ..rule.pairing import Pair
from ..rule.plan import Plan, make_plan
from ..settings import Settings

ROLES = ("content", "style")


@dataclass(frozen=True)
class Part:
    """A pair that is ready to act on the loaded model."""

    settings: Settings
    entries: tuple[Entry, Entry]  # content, style
    fusion: Fusion


def read_target(host: Host, p: Any) -> Target:
    return Target(host.find_sites(), host.get_checkpoint_name(), host.get_device(), host.estimate_sampling_memory(p))


def make_part(host: Host, library: Library, settings: Settings, p: Any) -> Part:
    """Read, pair, score and plan, and check that the pair fits the loaded model.

    Raises a KLoraError, before anything is changed.
    """
    entries = find_entries(host, settings)
    content, style = ((entry.path, entry.name) for entry in entries)
    loaded = read_target(host, p)
    fusion = fuse_files(library, (content, style), settings, loaded)
    with blame_both():
        fusion.open(loaded, (1.0, 1.0), p.steps)  # only checks that the pair fits and the engine works; it is not used
    return Part(settings, entries, fusion)


def find_entries(host: Host, settings: Settings) -> tuple[Entry, Entry]:
    """The chosen content and style LoRA.  Raises SettingsError if one is not listed, or both are the same."""
    found: list[Entry] = []
    errors: list[KLoraError] = []
    for role, name in zip(ROLES, (settings.content, settings.style)):
        try:
            found.append(host.get_lora(name) if name else refuse_no_choice(host))
        except SettingsError as e:
            errors.append(e.blame(role))
    if errors:
        raise join_errors(errors)
    content, style = found
    if content == style:
        raise SettingsError(f"must be another LoRA than content, both are {content.name!r}", "style")
    return content, style


def refuse_no_choice(host: Host) -> NoReturn:
    """The name None stands for no LoRA, in the panel and so everywhere."""
    listed = host.find_lora("None")
    also = f" ('None' stands for none, so that the file {listed.path!r} needs another name)" if listed else ""
    raise SettingsError(f"no LoRA is chosen{also}")


class Listed(NamedTuple):
    """Two listed LoRAs, and what they would do; no model is asked."""

    entries: tuple[Entry, Entry]
    pair: Pair
    plan: Plan


def plan_listed(host: Host, library: Library, settings: Settings, steps: int, seed: int = 0) -> Listed:
    """The plan for the LoRAs that ``settings`` name, made on the CPU: the GPU belongs to the job that samples.

    Raises a KLoraError, for OFT, BOFT and IA3 too, whose change only the model tells.
    """
    entries = find_entries(host, settings)
    content, style = entries
    files = library.read_both((content.path, content.name), (style.path, style.name))
    with blame_both():
        pair = library.pair(*files)
        scores = library.measure(pair, settings, torch.device("cpu"))
        return Listed(entries, pair, make_plan(pair, scores, settings, steps, seed))
