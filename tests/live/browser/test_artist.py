"""What an artist does: see artist.js for what is pressed and typed.  (Off means off: tests/live/test_images.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..host import Host
from .conftest import Browse, check_console

pytestmark = pytest.mark.hosts("a1111", "forge")
# Where sizes are written or the box of the hires pass is ticked, gradio 3 raises "reading 'props'" in A1111; no request of
# ours goes out then.
WEBUIS_OWN = ("size", "hiresOn", "hiresOff", "img2imgSize")
PRESETS = ["paper S", "paper S*", "subject-heavy", "style-heavy", "recommended"]


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    host, pair = page_host, page_host.sd15.full
    image = tmp_path_factory.mktemp("drawn") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(image)
    checkpoint = Path(host.sdxl.checkpoint).stem
    return browse("artist.js", pair.content, pair.style, host.sdxl.full.content, checkpoint, str(image))


def is_drawn_by(text: str, host: Host) -> bool:
    pair = host.sd15.full
    return f"K-LoRA enabled: True, K-LoRA content: {pair.content}, K-LoRA style: {pair.style}" in text


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    ours = [said for said in seen["errors"] if not (said.startswith(WEBUIS_OWN) and "reading 'props'" in said)]
    check_console(seen | {"errors": ours})


def test_tab_reaches_the_buttons_of_a_card_and_shows_them(seen: dict[str, Any]) -> None:
    assert seen["cardReached"] == ["content", "visible", "1"]


def test_keys_that_come_before_the_pages_next_frame_are_the_search(seen: dict[str, Any], page_host: Host) -> None:
    assert seen["early"] == page_host.sd15.full.content, "not after the word None"


def test_generate_and_paste(seen: dict[str, Any], page_host: Host) -> None:
    assert is_drawn_by(seen["image"], page_host) and "K-LoRA balance: 0.7" in seen["image"]
    assert seen["pasted"] == [True, page_host.sd15.full.content, page_host.sd15.full.style]
    assert seen["pastedPrompt"] == "a cat"


def test_own_presets(seen: dict[str, Any]) -> None:
    assert "mine" in seen["saved"] and float(seen["loaded"]) == 0.7
    assert seen["exported"]["mine"]["balance"] == 0.7
    assert "1" in seen["imported"] and seen["presetsLeft"] == PRESETS


def test_presets_are_refused_in_one_sentence(seen: dict[str, Any]) -> None:
    assert seen["preset_refused"].strip() == (
        "preset: 'paper S' is the name of a preset that comes with K-LoRA: choose another one."
    )
    assert seen["importRefused"].strip() == 'presets: this is not JSON; it looks like {"my preset": {"balance": 1.0}}.'


def test_a_tag_in_the_prompt_draws_without_the_panel(seen: dict[str, Any], page_host: Host) -> None:
    assert is_drawn_by(seen["tagged"].replace("K-LoRA style_weight: 0.8, ", ""), page_host)
    assert "K-LoRA balance: 0.2" in seen["tagged"] and "K-LoRA tag: used" in seen["tagged"]
    assert "K-LoRA" not in seen["plain"]


def test_a_bad_pair_is_a_sentence(seen: dict[str, Any]) -> None:
    assert "are made for different models: " in seen["badPair"] and "Steps:" not in seen["badPair"]


def test_the_hires_pass_has_its_own_balance(seen: dict[str, Any], page_host: Host) -> None:
    assert is_drawn_by(seen["hires"], page_host)
    assert "K-LoRA hires: own, K-LoRA hires_balance: 1.5" in seen["hires"]


def test_a_plot_of_balance_and_method(seen: dict[str, Any], page_host: Host) -> None:
    """Three by three images of 64 pixels, with the values beside them."""
    assert is_drawn_by(seen["plot"], page_host)
    assert seen["grid"]["width"] > 3 * 64 and seen["grid"]["height"] >= 3 * 64


def test_img2img(seen: dict[str, Any], page_host: Host) -> None:
    assert is_drawn_by(seen["img2img"], page_host) and "Denoising strength" in seen["img2img"]
    most, least = seen["img2imgMaps"]
    assert (len(most), len(least)) == (4, 2) and least[0] >= most[0], "less noise: fewer steps, which begin later"


@pytest.mark.hosts("a1111")
def test_another_checkpoint_is_warned_of(seen: dict[str, Any], page_host: Host) -> None:
    assert f"are not made for the model of '{Path(page_host.sdxl.checkpoint).stem}'" in seen["otherCheckpoint"]


@pytest.mark.hosts("forge")
def test_a_checkpoint_that_is_loaded_later_is_asked_about_once(seen: dict[str, Any]) -> None:
    assert seen["asked"] and set(seen["asked"]) == {1}, "by each tab with a pair"
