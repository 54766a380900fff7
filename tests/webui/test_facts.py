"""Theorem: what stands under the pickers is the file's, escaped; and two LoRAs that do not fit are told so at once."""

from __future__ import annotations

import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from klora_lib.engine import fit
from klora_lib.lora import facts as lora_facts
from klora_lib.lora.facts import Facts
from klora_lib.webui import facts
from klora_lib.webui.facts_html import mark_answer, write_facts, write_note, write_trouble
from klora_lib.webui.pickers import choose

from ..fakes.host import FakeHost

EVIL = "\"><img src=x onerror='alert(1)'>"


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]


def test_an_answer_says_what_it_is_about(host: FakeHost) -> None:
    """So that an answer which comes in too late is seen to be one."""
    assert 'data-for="subject"' in host.app.describe_lora("subject")
    assert 'data-for="subject\nother_family"' in host.app.check_pair("subject", "other_family")
    assert "<b>" not in mark_answer("", "<b>", '"', model="<b>")


def test_nothing_of_a_file_becomes_html() -> None:
    ranks: Any = (EVIL, EVIL + "2")
    html = write_facts(Facts(EVIL, EVIL, ranks, 3, EVIL, ("plain",)), [EVIL.replace("<", "")], "./thumb?f=" + EVIL)
    for each in (html, write_trouble(EVIL), write_note(EVIL, EVIL)):
        seen = Tags(each)
        assert set(seen.tags) <= {"div", "span", "b", "button", "img"} and "onerror" not in seen.attributes
        assert seen.tags.count("img") == ("./thumb" in each)


def test_a_word_with_an_angle_bracket_is_no_chip() -> None:
    assert "data-word" not in write_facts(Facts("", "", None, 0, "", (EVIL,)), [EVIL], "")


def test_facts_of_a_listed_file(host: FakeHost) -> None:
    html = host.app.describe_lora("subject")
    assert "LoRA" in html and "<b>layers</b>" in html and "klora-trouble" not in html


@pytest.mark.parametrize("name", ["None", "", None, 3])
def test_nothing_chosen_says_nothing(host: FakeHost, name: object) -> None:
    assert host.app.describe_lora(name) == ""


def test_a_name_that_is_not_listed_is_refused_in_a_sentence(host: FakeHost) -> None:
    html = host.app.describe_lora(EVIL)
    assert "there is no LoRA named" in html and "press the refresh button" in html and "<img" not in html


def test_two_that_do_not_fit_are_told(host: FakeHost) -> None:
    assert host.app.check_pair("subject", "style") == mark_answer("", "subject", "style", model="tiny")
    assert "made for different models" in host.app.check_pair("subject", "other_family")
    assert "must be another LoRA than content" in host.app.check_pair("subject", "subject")
    for content, style in (("None", "style"), ("nowhere", "style"), (None, 3)):
        assert "klora-trouble" not in host.app.check_pair(content, style)


def test_so_is_a_pair_that_does_not_fit_the_checkpoint(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a checkpoint is not loaded for it."""
    wrong = fit.refuse_misfit
    asked = []

    def refuse(pair: object, sites: object, name: str) -> None:
        asked.append(name)
        wrong(pair, {}, name)

    monkeypatch.setattr(fit, "refuse_misfit", refuse)
    assert "none of the layers that both LoRAs touch is in &#x27;tiny&#x27;" in host.app.check_pair("subject", "style")
    monkeypatch.setattr(host.sd_models.model_data, "sd_model", None)
    assert "klora-trouble" not in host.app.check_pair("subject", "style") and asked == ["tiny"]


def test_a_checkpoint_that_waits_to_be_loaded_is_not_asked(forge: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge keeps the old model until the next job begins, and a placeholder before the first."""
    data = forge.sd_models.model_data
    monkeypatch.setattr(data, "forge_loading_parameters", {"checkpoint_info": "new"}, raising=False)
    monkeypatch.setattr(data, "forge_hash", "old", raising=False)
    assert 'data-model=""' in forge.app.check_pair("subject", "style")
    monkeypatch.setattr(data, "forge_hash", str(data.forge_loading_parameters))
    assert 'data-model="tiny"' in forge.app.check_pair("subject", "style")
    monkeypatch.setattr(forge.shared, "sd_model", object())
    assert 'data-model=""' in forge.app.check_pair("subject", "style")


def test_the_answer_names_the_checkpoint_it_is_about(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the page asks again when the WebUI was still loading the one that was chosen."""
    assert 'data-model="tiny"' in host.app.check_pair("subject", "style")
    assert "data-model" not in host.app.describe_lora("subject")
    monkeypatch.setattr(host.sd_models.model_data, "sd_model", None)
    assert 'data-model=""' in host.app.check_pair("subject", "style")


def test_a_file_is_looked_at_again_when_it_changes(loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.safetensors"
    shutil.copy(loras / "subject.safetensors", path)
    reads = []
    read = lora_facts.read_facts
    monkeypatch.setattr(lora_facts, "read_facts", lambda path, name: reads.append(name) or read(path, name))
    shelf = facts.FactCache()
    first = shelf.read(str(path), "some")
    assert shelf.read(str(path), "some") is first and len(reads) == 1
    save_file(load_file(path), path, {"modelspec.trigger_phrase": "sks"})
    os.utime(path, (1, 1))
    assert shelf.read(str(path), "some").words == ("sks",) and len(reads) == 2


def test_the_shelf_is_bounded(loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "MOST", 2)
    shelf = facts.FactCache()
    for name in "abc":
        shutil.copy(loras / "subject.safetensors", tmp_path / f"{name}.safetensors")
        shelf.read(str(tmp_path / f"{name}.safetensors"), name)
    assert len(shelf.kept) == 2


def test_activation_text_and_preview_lie_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a b#.safetensors"
    assert facts.read_activation(path) == [] and facts.find_preview(path) == ""
    path.with_suffix(".json").write_text(json.dumps({"activation text": "sks, (a, b:1.1)"}), encoding="utf-8")
    assert facts.read_activation(path) == ["sks", "(a, b:1.1)"]
    (tmp_path / "a b#.preview.png").write_bytes(b"")
    assert "/a%20b%23.preview.png&mtime=" in facts.find_preview(path)


BROKEN = ["", "[]", "3", '{"activation text": 3}', '{"activation text": null}', "[" * 100_000, "\ud800"]


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_sidecar_is_passed_over(tmp_path: Path, said: str) -> None:
    (tmp_path / "a.json").write_bytes(said.encode("utf-8", "surrogatepass"))
    assert facts.read_activation(tmp_path / "a.safetensors") == []


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ('{"content": "x"}', ["x", "b"]),
        ('{"style": "x"}', ["a", "x"]),
        ('{"style": "a"}', ["None", "a"]),
        ('{"content": "b"}', ["b", "None"]),
        ("{}", ["a", "b"]),
        ("", ["a", "b"]),
        ("[3]", ["a", "b"]),
        ('{"content": 3}', ["a", "b"]),
        (None, ["a", "b"]),
    ],
)
def test_a_cards_button_chooses(asked: object, names: list[str]) -> None:
    assert choose(asked, "a", "b") == names
