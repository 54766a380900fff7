"""Theorem: every string that the panel and the settings page show has a translation in each of the three languages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klora_lib.settings import FIELDS
from klora_lib.webui import options
from klora_lib.webui.presets import Store

from ..fakes.host import FakeHost
from .test_panel import new_page

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "localizations"
LANGUAGES = ("zh_CN", "ja_JP", "ko_KR")
SAME = {"K-LoRA", "None", "refresh", "Ask"}  # the same in all languages, the stand-in's, hidden
PLACES = re.compile(r"\{\w+\}")


def read(language: str) -> dict[str, str]:
    return json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))


def find_panel_strings(host: FakeHost) -> Iterator[str]:
    """Labels, sentences of help and buttons of the panel as it is built."""
    with new_page() as page:
        host.script.ui(False)
    for block in page.blocks.values():
        kind = type(block).__name__
        yield from filter(None, (getattr(block, "label", None), getattr(block, "info", None)))
        if kind in ("Button", "ToolButton"):
            yield block.value


def find_code_strings() -> Iterator[str]:
    """What the HTML of klora_lib/webui and the files of javascript say."""
    html = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "klora_lib" / "webui").glob("*.py"))
    yield from re.findall(r"<b>([A-Za-z ]+)</b>", html)
    yield from re.findall(r'title="([^"{]+)"', html)
    yield from re.findall(r'write_note\("(\w+)"', html)
    script = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "javascript").glob("*.js")))
    yield from re.findall(r'KLoraPanel\.say\(\s*"([^"]+)"', script)
    for call in re.findall(r"KLoraPanel\.say\((.*)\);?", script):
        yield from (one or two for one, two in re.findall(r"""'([^']{4,})'|"((?!content")[^"{]{4,})\"""", call))


def find_option_strings() -> Iterator[str]:
    yield from options.LABELS.values()
    yield from (f"({hint})" for hint in options.HINTS.values())  # as the WebUI shows a hint


def needs_translation(text: str) -> bool:
    return text not in SAME and bool(re.search(r"[A-Za-z]{2}", text))


def find_strings(host: FakeHost) -> set[str]:
    found = [*find_panel_strings(host), *find_code_strings(), *find_option_strings()]
    return {text.strip() for text in found if needs_translation(text)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_string_is_missing(a1111: FakeHost, language: str) -> None:
    strings, known = find_strings(a1111), read(language)
    assert strings >= {f.help for f in FIELDS if f.name != "enabled"} | {"Swap", "Add to the prompt", "Content of K-LoRA"}
    assert sorted(strings - set(known)) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_are_whole(language: str) -> None:
    """None is empty or left in English, and all have the places of their English sentence."""
    for text, translated in read(language).items():
        assert translated.strip() and translated != text
        assert sorted(PLACES.findall(text)) == sorted(PLACES.findall(translated))


def test_a_missing_one_is_seen(a1111: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(options.LABELS, options.ENGINE, "A new label")
    assert "A new label" in find_strings(a1111) - set(read("zh_CN"))


class OptionInfo(SimpleNamespace):
    """As the WebUI's, with what ours use."""

    def __init__(self, default: Any, label: str, component: Any, component_args: Any, section: Any, onchange: Any = None):
        super().__init__(default=default, label=label, component_args=component_args, section=section, onchange=onchange)
        self.hint = ""

    def info(self, hint: str) -> OptionInfo:
        self.hint = hint
        return self


def test_a_preset_to_begin_with_that_cannot_be_used_is_told(
    a1111: FakeHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the panel begins with the defaults."""
    store = Store(str(tmp_path))
    store.save("mine", {"balance": 1.0})
    a1111.shared.opts.data = {options.PRESET: "mine"}
    assert options.find_start(store)["balance"] == 1.0 and capsys.readouterr().err == ""
    store.delete("mine")
    assert options.find_start(store) == {}
    told = capsys.readouterr().err
    assert told.startswith("K-LoRA: the panel begins without the preset 'mine' of the settings page: preset: there is no")


def test_the_settings_page_has_these_options(a1111: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    added: dict[str, OptionInfo] = {}
    shared = a1111.shared
    shared.OptionInfo = OptionInfo
    shared.opts.add_option = added.__setitem__
    shared.opts.data = {options.CACHE: 1.5}
    for callback in a1111.script_callbacks.registered["ui_settings"]:
        callback()
    assert list(added) == ["klora_preset", "klora_engine", "klora_cache_gb", "klora_map_colours", "klora_keep_scores"]
    assert {option.section for option in added.values()} == {("klora", "K-LoRA")}
    assert added["klora_preset"].component_args()["choices"][0] == "None"
    assert a1111.app.library.most == 1.5 * 2**30
    shared.opts.data[options.CACHE] = 4
    added["klora_cache_gb"].onchange()
    assert a1111.app.library.most == 4 * 2**30
    folder = Path(a1111.paths_internal.data_path) / "cache" / "klora"
    assert a1111.app.library.kept_in == str(folder)
    shared.opts.data[options.KEPT] = False
    added["klora_keep_scores"].onchange()
    assert a1111.app.library.kept_in is None and a1111.app.library.find_folder() is None
    assert sys.modules["modules.shared"] is shared
