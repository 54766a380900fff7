"""Chromium on the real WebUI.

KLORA_PLAYWRIGHT is a folder `node_modules` with playwright-core and axe-core; KLORA_CHROMIUM is the browser, if it is not
/usr/bin/chromium; KLORA_SHOTS is a folder for the screenshots, which otherwise stay in the temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import REPOSITORY, running
from ..host import Host
from ..kinds import KINDS, install

Browse = Callable[..., dict[str, Any]]  # (driver, its arguments) -> what the browser saw


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
def browse(page_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Browse:
    folder = Path(os.environ.get("KLORA_SHOTS") or tmp_path_factory.mktemp("shots")) / page_host.prefix
    folder.mkdir(parents=True, exist_ok=True)

    def run(driver: str, *given: str) -> dict[str, Any]:
        command = ["node", str(Path(__file__).parent / driver), page_host.address, str(folder), *given]
        env = {**os.environ, "NODE_PATH": os.environ["KLORA_PLAYWRIGHT"]}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def check_console(seen: dict[str, Any]) -> None:
    """No error of the page at all, and no message from our scripts; what others write is not counted."""
    assert seen["errors"] == []
    assert [said for said in seen["console"] if "klora" in said.lower()] == []
