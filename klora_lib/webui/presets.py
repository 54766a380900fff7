"""Presets: how to draw, without the two LoRAs.  Ours, and the user's own in a JSON file of the WebUI's data folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import KLoraError, SettingsError, quote_first_line
from ..settings import BY_NAME, FIELDS, Settings, quote_value, read_values
from ..writing import write_whole

# what a preset leaves as it is: the pair, where and how strongly it acts, and what does not change the choice
KEPT = (
    "enabled", "content", "style", "content_weight", "style_weight", "content_te_weight", "style_te_weight", "engine",
    "show_map",
)  # fmt: skip
TOUCHED = tuple(field.name for field in FIELDS if field.name not in KEPT)
# Name → the values that are not the default.  "recommended" is what docs/evaluation.md found best.
RECOMMENDED: Mapping[str, Any] = {"layers": "attention"}
OURS: Mapping[str, Mapping[str, Any]] = {
    "paper S": {},
    "paper S*": {"scale": "s*"},
    "subject-heavy": {"balance": -1.0},
    "style-heavy": {"balance": 1.0},
    "recommended": RECOMMENDED,
}
FILE_NAME = "klora_presets.json"
NO_PRESET = "None"  # what the settings page shows for it
MOST, LONGEST_NAME, LARGEST_TEXT = 200, 60, 1 << 20


def fill(preset: Mapping[str, Any]) -> dict[str, Any]:
    """All values that a preset sets, by field name; β as the number that its default means, as the panel shows it."""
    values = {name: BY_NAME[name].default for name in TOUCHED} | dict(preset)
    if values["beta"] is None:
        values["beta"] = Settings(alpha=values["alpha"], scale=values["scale"]).offset
    return values


def read_preset(given: Any) -> dict[str, Any]:
    """The valid values of a preset that differ from the default.  Raises SettingsError."""
    if not isinstance(given, Mapping):
        raise SettingsError(f"must be an object of settings, not {quote_value(given)}", "preset")
    values = read_values(given, {name: BY_NAME[name] for name in TOUCHED})
    Settings(**values)
    return {name: value for name, value in values.items() if value != BY_NAME[name].default}


def read_presets(text: str) -> dict[str, dict[str, Any]]:
    """Presets from JSON: {name: {setting: value}}.  Raises SettingsError."""
    return {read_name(name): read_named(name, preset) for name, preset in read_objects(text).items()}


def read_objects(text: str) -> dict[str, Any]:
    """What JSON has by name, not validated.  Raises SettingsError."""
    if len(text) > LARGEST_TEXT:
        raise SettingsError(f"the text has {len(text)} characters, and may have {LARGEST_TEXT}", "presets")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise SettingsError('this is not JSON; it looks like {"my preset": {"balance": 1.0}}', "presets") from None
    if not isinstance(given, dict) or len(given) > MOST:
        raise SettingsError(f"must be an object of at most {MOST} presets by name", "presets")
    return given


def read_named(name: Any, preset: Any) -> dict[str, Any]:
    """The valid values of the preset called ``name``.  Raises SettingsError, which tells the name."""
    try:
        return read_preset(preset)
    except KLoraError as e:
        raise SettingsError(f"{quote_value(name)}: {e}", "presets") from None


def read_name(name: Any) -> str:
    """Raises SettingsError."""
    name = name.strip() if isinstance(name, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise SettingsError(f"a name of 1 to {LONGEST_NAME} characters is needed, not {quote_value(name)}", "preset")
    if name in OURS:
        raise SettingsError(f"{name!r} is the name of a preset that comes with K-LoRA: choose another one", "preset")
    if name == NO_PRESET:
        raise SettingsError(f"{name!r} stands for no preset: choose another name", "preset")
    return name


def write_presets(presets: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps(presets, indent=2, ensure_ascii=False)


class Store:
    """The user's own presets, in ``folder``; None where nothing may be written.

    An entry of the file that this version cannot read is not listed, and stays in the file as it is.
    """

    turn = Lock()  # of all stores: the two tabs and the settings page have one each, on one file

    def __init__(self, folder: str | None):
        self.path = Path(folder) / FILE_NAME if folder else None

    def load(self) -> dict[str, Any]:
        """All that the file has by name, not validated; nothing if there is no file.  Raises SettingsError."""
        if self.path is None:
            return {}
        try:
            return read_objects(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, SettingsError) as e:
            reason = e.message if isinstance(e, SettingsError) else quote_first_line(e)
            told = f"{self.path} cannot be used ({reason}): mend that file or move it away"
            raise SettingsError(told, "presets") from None

    def read(self) -> dict[str, dict[str, Any]]:
        """Those of the file that can be read.  Raises SettingsError for a file that is no object of presets."""
        return dict(list_readable(self.load()))

    def list_names(self) -> list[str]:
        """Ours, then the user's own; only ours if the file cannot be used, which saving then says."""
        try:
            return [*OURS, *self.read()]
        except KLoraError:
            return list(OURS)

    def find(self, name: Any) -> Mapping[str, Any]:
        """Raises SettingsError."""
        if name in OURS:
            return OURS[name]
        own = self.load()
        if name not in own:
            raise SettingsError(f"there is no preset named {quote_value(name)} among the {len(OURS) + len(own)}", "preset")
        return read_named(name, own[name])

    def save(self, name: Any, values: Mapping[str, Any]) -> str:
        """Keep ``values`` under ``name``, in place of one with this name.  Returns the name.  Raises SettingsError."""
        name = read_name(name)
        preset = read_preset({key: value for key, value in values.items() if key in TOUCHED})
        with self.turn:
            self.write(self.load() | {name: preset})
        return name

    def delete(self, name: Any) -> None:
        """Raises SettingsError."""
        name = read_name(name)
        with self.turn:
            own = self.load()
            if name not in own:
                raise SettingsError(f"there is no preset named {quote_value(name)} of your own", "preset")
            self.write({key: value for key, value in own.items() if key != name})

    def add(self, text: str) -> int:
        """Add the presets of an exported JSON.  Returns how many.  Raises SettingsError."""
        found = read_presets(text)
        with self.turn:
            self.write(self.load() | found)
        return len(found)

    def write(self, presets: Mapping[str, Any]) -> None:
        """All or nothing: a new file takes the old one's place."""
        if self.path is None:
            raise SettingsError("nothing may be saved here: the WebUI's settings are frozen", "preset")
        if len(presets) > MOST:
            raise SettingsError(f"there are {MOST} presets already: delete one first", "preset")
        try:
            write_whole(self.path, write_presets(presets).encode())
        except OSError as e:
            raise SettingsError(f"{FILE_NAME} cannot be written: {quote_first_line(e)}", "preset") from None


def list_readable(given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, preset in given.items():
        try:
            yield read_name(name), read_named(name, preset)
        except KLoraError:
            continue
