"""A user's way through the panel, in chromium on the real WebUI: see drive.js for what is pressed and typed.

KLORA_PLAYWRIGHT is a folder `node_modules` with playwright-core and axe-core; KLORA_CHROMIUM is the browser, if it is not
/usr/bin/chromium; KLORA_SHOTS is a folder for the screenshots, which otherwise stay in the temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from .. import files
from ..conftest import REPOSITORY, running
from ..host import Host
from ..kinds import KINDS, install

pytestmark = pytest.mark.hosts("a1111", "forge")
DRIVER = Path(__file__).parent / "drive.js"
EVIL = '<img src=x onerror="window.kloraInjected = 1">'
WORDS = {"10_dog": {"sks dog": 9, EVIL: 99, "grass": 4}}
GRADIOS_OWN = {"color-contrast", "aria-allowed-role", "nested-interactive", "list"}  # of its lists, headers and grey help


def find_lacking() -> str:
    """What this machine lacks of a browser; empty if nothing."""
    modules = Path(os.environ.get("KLORA_PLAYWRIGHT", "/nowhere"))
    if not shutil.which("node"):
        return "node is not installed"
    if not Path(os.environ.get("KLORA_CHROMIUM", "/usr/bin/chromium")).exists():
        return "chromium is not installed (KLORA_CHROMIUM)"
    lacking = [name for name in ("playwright-core", "axe-core") if not (modules / name).is_dir()]
    return f"KLORA_PLAYWRIGHT, a folder node_modules, has no {' and no '.join(lacking)}" if lacking else ""


@pytest.fixture(scope="session")
def page_host(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if lacking := find_lacking():
        pytest.skip(lacking)
    host = install(KINDS[kind], tmp_path_factory.mktemp(f"page_{kind}"), {"klora": REPOSITORY, **KINDS[kind].sizes})
    flags = host.flags
    # the browser gets the WebUI's own scripts only from allowed folders, and its data folder is elsewhere
    host.flags = lambda checkpoint: [*flags(checkpoint), "--gradio-allowed-path", str(host.webui)]
    yield from running(host)


@pytest.fixture(scope="session")
def seen(page_host: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw on one way through the panel."""
    host, pair = page_host, page_host.sd15.full
    path = host.lora / "wordy.safetensors"  # written after the start: the user presses the refresh button
    save_file(files.read(host.lora / f"{pair.content}.safetensors"), path, {"ss_tag_frequency": json.dumps(WORDS)})
    path.with_suffix(".json").write_text(json.dumps({"activation text": "photo of sks, (a, b:1.2)"}))
    folder = Path(os.environ.get("KLORA_SHOTS") or tmp_path_factory.mktemp("shots")) / host.prefix
    folder.mkdir(parents=True, exist_ok=True)
    command = ["node", str(DRIVER), host.address, str(folder), "wordy", pair.style, host.sdxl.full.content]
    run = subprocess.run(
        command, env={**os.environ, "NODE_PATH": os.environ["KLORA_PLAYWRIGHT"]}, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    """No error of the page at all, and no message from our script; what others write is not counted."""
    assert seen["errors"] == []
    assert [said for said in seen["console"] if "klora" in said.lower()] == []


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
