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
# of its lists, headers and grey help; in HTML of ours these count too
GRADIOS_OWN = {"color-contrast", "aria-allowed-role", "nested-interactive", "list"}


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse) -> dict[str, Any]:
    """What the browser saw on one way through the panel."""
    host, pair = page_host, page_host.sd15.full
    path = host.lora / "wordy.safetensors"  # written after the start: the user presses the refresh button
    save_file(files.read(host.lora / f"{pair.content}.safetensors"), path, {"ss_tag_frequency": json.dumps(WORDS)})
    path.with_suffix(".json").write_text(json.dumps({"activation text": "photo of sks, (a, b:1.2)"}))
    for name in ("bobcat", "cat"):  # one name is a part of another, which comes first
        save_file(files.read(host.lora / f"{pair.content}.safetensors"), host.lora / f"{name}.safetensors")
    return browse("panel.js", "wordy", pair.style, host.sdxl.full.content)


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    check_console(seen)


def test_the_header_is_a_button(seen: dict[str, Any]) -> None:
    assert seen["header"] == [False, True], "closed and opened by the key Enter"


@pytest.mark.parametrize("key", ["Tab", "Enter", "Escape"])
def test_a_name_that_is_typed_in_full_is_taken(seen: dict[str, Any], key: str) -> None:
    assert seen["typed"][key] == ["cat", ""], "not the first that was found, and nothing is said"


def test_the_arrow_keys_go_before_what_is_typed(seen: dict[str, Any]) -> None:
    assert seen["arrows"] == ["bobcat", "bobcat"], "where they went, and what Enter took"


def test_the_lists_scrollbar_takes_nothing(seen: dict[str, Any]) -> None:
    assert seen["afterScrollbar"] == "wordy", "half a name is taken back"


def test_the_chosen_one_taken_again_is_whole(seen: dict[str, Any]) -> None:
    assert seen["chosenAgain"] == [["wordy", 1], ["wordy", 1]], "its name, and its facts"


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
    assert seen["promptWithPart"] == "hourglass, grassy, grass", "a part of another word is not the word"


def test_the_header_shows_the_pair_and_the_method(seen: dict[str, Any], page_host: Host) -> None:
    assert seen["title"] == seen["titleWhileTyping"] == f"wordy + {page_host.sd15.full.style} · klora"


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


def test_a_preset_is_listed_in_the_other_tab_and_on_a_new_page(seen: dict[str, Any]) -> None:
    assert ["ours" in seen[where] for where in ("presetsInOtherTab", "presetsAfterReload")] == [True, True]


@pytest.mark.parametrize("theme", ["axe", "axeInTheDark"])
def test_axe_finds_nothing_of_ours(seen: dict[str, Any], theme: str) -> None:
    found = [(each["rule"], node) for each in seen[theme] for node in each["nodes"]]
    assert [(rule, node) for rule, node in found if rule not in GRADIOS_OWN or node["ours"]] == []
