"""A user's way through the panel: see panel.js for what is pressed and typed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import save_file

from .. import files
from ..host import Host
from .conftest import Browse, check_console

pytestmark = pytest.mark.hosts("a1111", "forge")
EVIL = '<img src=x onerror="window.kloraInjected = 1">'
WORDS = {"10_dog": {"sks dog": 9, EVIL: 99, "grass": 4}}
GRADIOS_OWN = {"color-contrast", "aria-allowed-role", "nested-interactive", "list"}  # of its lists, headers and grey help


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse) -> dict[str, Any]:
    """What the browser saw on one way through the panel."""
    host, pair = page_host, page_host.sd15.full
    path = host.lora / "wordy.safetensors"  # written after the start: the user presses the refresh button
    save_file(files.read(host.lora / f"{pair.content}.safetensors"), path, {"ss_tag_frequency": json.dumps(WORDS)})
    path.with_suffix(".json").write_text(json.dumps({"activation text": "photo of sks, (a, b:1.2)"}))
    return browse("panel.js", "wordy", pair.style, host.sdxl.full.content)


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    check_console(seen)


def test_what_is_not_listed_is_refused_and_the_choice_stays(seen: dict[str, Any]) -> None:
    assert seen["unknown"] == 'There is no LoRA named "no such file" in the list; "None" stays chosen.'
    assert seen["afterUnknown"] == "None"


def test_typing_searches_from_the_first_key(seen: dict[str, Any]) -> None:
    assert seen["options of word"] == ["wordy"]


def test_facts_and_words_are_the_files(seen: dict[str, Any]) -> None:
    assert seen["facts"].startswith("SD1") and "rank" in seen["facts"] and "layers" in seen["facts"]
    assert seen["chips"] == ["photo of sks", "(a, b:1.2)", "sks dog", "grass"]
    assert seen["injected"] is None
    assert seen["prompt"] == "photo of sks", "pressed twice, it is in the prompt once"


def test_the_header_shows_the_pair_and_the_method(seen: dict[str, Any], page_host: Host) -> None:
    assert seen["title"] == f"wordy + {page_host.sd15.full.style} · klora"


def test_swap_preset_and_warning(seen: dict[str, Any], page_host: Host) -> None:
    assert seen["swapped"] == [page_host.sd15.full.style, "wordy"]
    assert float(seen["preset"]) == 1.0
    assert "made for different models" in seen["misfit"]


def test_an_answer_that_comes_too_late_is_put_right(seen: dict[str, Any]) -> None:
    assert seen["held"] >= 1


def test_buttons_on_the_cards(seen: dict[str, Any]) -> None:
    """They choose, do not write the card's tag into the prompt, and are there again after a refresh."""
    assert seen["cardButtons"] == ["C", "S"] and seen["promptKept"]
    assert seen["pressed"] == 2


def test_axe_finds_nothing_of_ours(seen: dict[str, Any]) -> None:
    assert [found for found in seen["axe"] if found["rule"] not in GRADIOS_OWN] == []
