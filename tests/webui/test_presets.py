"""Theorem: a preset is a set of valid values; the user's own are kept whole or not at all."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from klora_lib.errors import SettingsError
from klora_lib.settings import FIELDS, Settings, read_settings
from klora_lib.webui import presets
from klora_lib.webui.presets import FILE_NAME, OURS, TOUCHED, Store, fill, read_presets, write_presets


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.mark.parametrize("name", OURS)
def test_ours_are_settings(name: str) -> None:
    values = fill(OURS[name])
    assert set(values) == set(TOUCHED) and read_settings(values)
    assert presets.read_preset(dict(OURS[name])) == dict(OURS[name])


def test_a_preset_leaves_the_pair() -> None:
    assert not {"enabled", "content", "style", "content_weight", "style_weight", "engine"} & set(TOUCHED)
    assert set(TOUCHED) < {field.name for field in FIELDS}


def test_the_papers_second_scale_begins_with_its_own_beta() -> None:
    assert fill(OURS["paper S"])["beta"] == 0.5 and fill(OURS["paper S*"])["beta"] == Settings(scale="s*").offset == 1.275


def test_saved_and_found(store: Store, tmp_path: Path) -> None:
    assert store.save(" mine ", fill({"balance": 1.5})) == "mine"
    assert store.list_names() == [*OURS, "mine"]
    assert store.find("mine") == {"balance": 1.5, "beta": 0.5}
    assert Store(str(tmp_path)).find("mine") == store.find("mine")
    store.delete("mine")
    assert store.list_names() == list(OURS)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME], "no other file is left"


def test_what_is_exported_can_be_imported(store: Store, tmp_path: Path) -> None:
    store.save("one", {"method": "est"})
    text = write_presets(store.read())
    other = Store(str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    assert other.add(text) == 1 and other.read() == store.read() == {"one": {"method": "est"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "this is not JSON"),
        ("[]", "must be an object"),
        ('{"a": 1}', "must be an object of settings"),
        ('{"a": {"balance": 99}}', "balance: must be a number from -3 to 3"),
        ('{"a": {"content": "x"}}', "is not a K-LoRA setting"),
        ('{"a": {"scale": "s*", "alpha": 0}}', "must be above 0"),
        ('{"paper S": {}}', "comes with K-LoRA"),
        ('{"": {}}', "a name of 1 to 60 characters"),
        (json.dumps({str(n): {} for n in range(201)}), "at most 200"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(store: Store, text: str, said: str) -> None:
    store.save("kept", {"balance": 1.0})
    with pytest.raises(SettingsError, match=said):
        store.add(text)
    assert store.read() == {"kept": {"balance": 1.0}}


@pytest.mark.parametrize("name", ["", None, "x" * 61, "a\nb", "recommended", "None", " None ", 3])
def test_a_name_that_cannot_be(store: Store, name: Any) -> None:
    with pytest.raises(SettingsError):
        store.save(name, {})
    assert store.list_names() == list(OURS)


def test_a_damaged_file_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("not ours", encoding="utf-8")
    assert store.list_names() == list(OURS), "the panel comes up"
    with pytest.raises(SettingsError) as refusal:
        store.save("mine", {})
    told = str(refusal.value)
    assert str(tmp_path / FILE_NAME) in told and "not JSON" in told and told.endswith("mend that file or move it away")
    assert (tmp_path / FILE_NAME).read_text(encoding="utf-8") == "not ours"


def test_an_entry_of_another_version_hides_no_other_and_stays(store: Store, tmp_path: Path) -> None:
    """A setting that is not known here, and a name that is ours now."""
    others = {"later": {"newthing": 1}, "recommended": {"balance": 1.0}, "mine": {"balance": 2.0}}
    (tmp_path / FILE_NAME).write_text(json.dumps(others), encoding="utf-8")
    assert store.list_names() == [*OURS, "mine"] and store.find("mine") == {"balance": 2.0}
    with pytest.raises(SettingsError, match="'later': 'newthing': is not a K-LoRA setting"):
        store.find("later")
    store.save("more", {"method": "est"})
    assert store.list_names() == [*OURS, "mine", "more"]
    store.delete("mine")
    kept = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert kept == {"later": {"newthing": 1}, "recommended": {"balance": 1.0}, "more": {"method": "est"}}
    store.delete("later")
    with pytest.raises(SettingsError, match="no preset named 'mine' of your own"):
        store.delete("mine")


def test_two_that_save_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits between reading and writing, until the second one has begun."""
    first, second = Store(str(tmp_path)), Store(str(tmp_path))
    began = threading.Event()
    other = threading.Thread(target=lambda: (began.set(), second.save("two", {})))
    write = first.write

    def write_late(found: Any) -> None:
        other.start()
        began.wait()
        other.join(0.2)
        write(found)

    monkeypatch.setattr(first, "write", write_late)
    first.save("one", {})
    other.join()
    assert set(first.read()) == {"one", "two"}


def test_a_frozen_webui_keeps_nothing() -> None:
    store = Store(None)
    assert store.list_names() == list(OURS)
    with pytest.raises(SettingsError, match="frozen"):
        store.save("mine", {})


def test_numbers_of_a_file_are_those_of_the_panel() -> None:
    assert read_presets('{"a": {"k": "all", "gamma": 2, "alpha": "1.0"}}') == {"a": {"k": "all", "gamma": 2.0, "alpha": 1.0}}
