"""The settings page, another language, and what opening the page costs: see settings.js.  Its changes are taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..conftest import REPOSITORY
from ..host import Host
from .conftest import Browse, check_console

pytestmark = pytest.mark.hosts("a1111", "forge")
CHANGED = {"klora_preset": "None", "klora_engine": "auto", "localization": "None"}


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse) -> Iterator[dict[str, Any]]:
    pair = page_host.sd15.full
    try:
        yield browse("settings.js", pair.content, pair.style)
    finally:
        page_host.options(**CHANGED)


@pytest.fixture(scope="session")
def chinese() -> dict[str, str]:
    return json.loads((REPOSITORY / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    check_console(seen)


def test_the_panel_begins_as_the_settings_page_says(seen: dict[str, Any]) -> None:
    assert float(seen["balance"]) == 1.0 and seen["engine"] == "bypass"


def test_the_panel_is_in_the_chosen_language(seen: dict[str, Any], chinese: dict[str, str], page_host: Host) -> None:
    assert seen["labels"] == [chinese[text] for text in ("Content LoRA", "Balance", "Swap")]
    assert chinese["layers"] in seen["facts"]
    sentence = chinese['There is no LoRA named "{typed}" in the list; "{before}" stays chosen.']
    assert seen["said"] == sentence.format(typed="no such file", before=page_host.sd15.full.content)


def test_what_opening_the_page_costs(seen: dict[str, Any], record_property: Any) -> None:
    """No time is asserted here: it goes into the report of the test's run."""
    record_property("our_scripts_ms", round(seen["milliseconds"], 1))
    assert seen["milliseconds"] > 0, "our scripts were seen in the profile"
