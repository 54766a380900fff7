"""An artist's work with the panel in a browser: see work.js for what is pressed and typed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..host import Host
from .conftest import Browse, check_console

pytestmark = pytest.mark.hosts("a1111", "forge")


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse) -> dict[str, Any]:
    pair = page_host.sd15.full
    return browse("work.js", pair.content, pair.style)


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    check_console(seen)


def test_own_presets_are_kept_carried_and_deleted(seen: dict[str, Any]) -> None:
    assert json.loads(seen["exported"])["mine"]["balance"] == 0.7
    assert not [name for name in seen["presetsAfterDeleting"] if "mine" in name]
    assert "JSON" in seen["badPresets"]


def test_an_image_tells_its_settings_and_gives_them_back(seen: dict[str, Any], page_host: Host) -> None:
    pair = page_host.sd15.full
    assert f"K-LoRA content: {pair.content}" in seen["drawn"] and "K-LoRA balance: 0.7" in seen["drawn"]
    assert seen["pasted"] == [pair.content, pair.style]


def test_a_tag_in_the_prompt_wins(seen: dict[str, Any]) -> None:
    assert "K-LoRA balance: 0.4" in seen["tagged"] and "K-LoRA style weight: 0.5" in seen["tagged"]


def test_refusals_are_sentences(seen: dict[str, Any]) -> None:
    assert "style: must be another LoRA than content" in seen["refused"]
    assert "nobody" in seen["badTag"] and "K-LoRA" in seen["badTag"]


def test_a_plot_over_balance_and_method(seen: dict[str, Any]) -> None:
    assert seen["plotImages"] >= 1 and "rror" not in seen["plotLog"]
    assert "X Type: K-LoRA balance" in seen["plotted"] and "Y Type: K-LoRA method" in seen["plotted"]


def test_the_keyboard_reaches_the_panel(seen: dict[str, Any]) -> None:
    assert {"style", "swap", "method", "balance", "preset", "map"} <= set(seen["keyboard"])


def test_img2img_has_a_map_of_its_own(seen: dict[str, Any]) -> None:
    assert 0 < seen["img2img"]["steps"] < 20, "of the calls that are left at this denoising strength"


def test_the_settings_page(seen: dict[str, Any]) -> None:
    assert {f"setting_klora_{name}" for name in ("preset", "engine", "cache_gb", "map_colours")} <= set(seen["settings"])


def test_what_the_page_costs(seen: dict[str, Any], record_property: Any) -> None:
    """No time is asserted here: what was measured goes into the report of the test's run."""
    ours, everything = seen["opening"]
    told = f"opening the page: {ours:.1f} ms of script are ours, of {everything:.0f} ms"
    record_property("page", told)
    print(told)
    assert 0 < ours < everything
