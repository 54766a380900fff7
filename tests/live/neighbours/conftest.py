"""A WebUI with K-LoRA and one other extension; and the same without K-LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import REPOSITORY, running
from ..host import Host
from ..jobs import plain
from ..kinds import KINDS, install
from ..witness import Witness
from .checks import Beside

FOLDER = "KLORA_NEIGHBOURS"  # the folder that has the extensions' own, by their repositories' names
PROBE = Path(__file__).parents[1] / "extension"


@pytest.fixture(scope="module")
def extension(request: pytest.FixtureRequest) -> Path:
    """Of the repository that the test's module names as EXTENSION, where the variable says."""
    name = request.module.EXTENSION
    if not os.environ.get(FOLDER):
        pytest.skip(f"not set: {FOLDER} (a folder with the extensions to run beside, {name} among them)")
    path = Path(os.environ[FOLDER]).absolute() / name
    if not path.is_dir():
        pytest.skip(f"{FOLDER} has no {name}")
    return path


def beside(request: pytest.FixtureRequest, kind: str, folder: Path, extension: Path, ours: dict[str, Path]) -> Host:
    """``prepare(host)`` of the test's module, if it has one, answers with the options that the extension needs."""
    extensions = {"a-probe": PROBE, **ours, extension.name: extension, **KINDS[kind].sizes}
    host = install(KINDS[kind], folder, extensions)
    prepare = getattr(request.module, "prepare", None)
    if prepare is not None:
        config = host.data / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | prepare(host)))
    return host


@pytest.fixture(scope="module")
def host(
    request: pytest.FixtureRequest, kind: str, extension: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp(f"{kind}_{extension.name}")
    yield from running(beside(request, kind, folder, extension, {"klora": REPOSITORY}))


@pytest.fixture(scope="module")
def host_without_klora(
    request: pytest.FixtureRequest, kind: str, extension: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """With the probe, which sets what no seed of a job sets, so that an image can be drawn again."""
    folder = tmp_path_factory.mktemp(f"{kind}_{extension.name}_alone")
    yield from running(beside(request, kind, folder, extension, {}))


@pytest.fixture(scope="module")
def witness(request: pytest.FixtureRequest, host: Host) -> Witness:
    """Of the host after the extension has acted once, in a job with the fields that the module's ``used`` says."""
    host.use(host.sd15.checkpoint)
    host.image(plain(**request.module.used(host.sd15)))
    return Beside(host, host.sd15)
