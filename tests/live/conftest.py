"""One real WebUI for all live tests. Needs an installed AUTOMATIC1111 and tiny models; skips where they are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from . import files
from .host import Host
from .jobs import SD15, SD15_OTHER, SDXL, Model
from .witness import Witness

REPOSITORY = Path(__file__).resolve().parents[2]
VARIABLES = {
    "KLORA_A1111_DIR": "the folder of an installed AUTOMATIC1111 WebUI",
    "KLORA_A1111_PYTHON": "the Python that runs it",
    "KLORA_A1111_MODELS": "a folder with ckpt/tiny-sd15, ckpt/tiny-sdxl and lora/{subject,style,…}",
}
MODELS = {model.name: model for model in (SD15, SDXL)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a WebUI one test says so for all."""
    missing = [f"{name} ({what})" for name, what in VARIABLES.items() if not os.environ.get(name)]
    live = [item for item in items if Path(__file__).parent in item.path.parents]
    if missing and live:
        live[0].add_marker(pytest.mark.skip(reason="not set: " + ", ".join(missing)))
        config.hook.pytest_deselected(items=live[1:])
        items[:] = [item for item in items if item not in live[1:]]


@pytest.fixture(scope="session")
def places() -> dict[str, Path]:
    return {name: Path(os.environ[name]).absolute() for name in VARIABLES}


@pytest.fixture(scope="session")
def ckpt(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the checkpoints, and a third that shares SD1.5's config file."""
    folder = tmp_path_factory.mktemp("ckpt")
    for source in (places["KLORA_A1111_MODELS"] / "ckpt").iterdir():
        (folder / source.name).symlink_to(source)
    weights = {k: v * 1.25 if ".attn" in k else v for k, v in load_file(folder / SD15.checkpoint).items()}
    # the WebUI's own unpickler knows the old layout only
    torch.save({"state_dict": weights}, folder / SD15_OTHER, _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture(scope="session")
def lora(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    for source in (places["KLORA_A1111_MODELS"] / "lora").glob("*.safetensors"):
        (folder / source.name).symlink_to(source)
    for model in MODELS.values():
        for seed, role in enumerate(("content", "style")):
            tensors = files.read(folder / f"{getattr(model.full, role)}.safetensors")
            files.write(folder / f"{getattr(model.uneven, role)}.safetensors", files.uneven(tensors, seed))
    return folder


def started(folder: Path, places: dict, ckpt: Path, lora: Path, extensions: dict[str, Path]) -> Iterator[Host]:
    host = Host(folder, places["KLORA_A1111_DIR"], places["KLORA_A1111_PYTHON"], ckpt, lora, extensions)
    try:
        host.start(SD15.checkpoint)
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="session")
def host(places, ckpt, lora, tmp_path_factory) -> Iterator[Host]:
    # the probe's name comes first, so that it sees the WebUI before the extension does
    extensions = {"a-probe": Path(__file__).parent / "extension", "klora": REPOSITORY}
    yield from started(tmp_path_factory.mktemp("host"), places, ckpt, lora, extensions)


@pytest.fixture(scope="session")
def bare_host(places, ckpt, lora, tmp_path_factory) -> Iterator[Host]:
    """The WebUI without any extension of ours."""
    yield from started(tmp_path_factory.mktemp("bare"), places, ckpt, lora, {})


@pytest.fixture(scope="session", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    """Session-wide, so that pytest groups the tests by checkpoint: loading one costs seconds."""
    return request.param


@pytest.fixture(scope="session")
def witnesses() -> dict[Model, Witness]:
    return {}


def ready(host: Host, model: Model, witnesses: dict[Model, Witness]) -> Model:
    host.use(model.checkpoint)
    if model not in witnesses:
        witnesses[model] = Witness(host, model)
    return model


@pytest.fixture
def model(host: Host, family: str, witnesses: dict[Model, Witness]) -> Model:
    return ready(host, MODELS[family], witnesses)


@pytest.fixture
def sd15(host: Host, witnesses: dict[Model, Witness]) -> Model:
    return ready(host, SD15, witnesses)


@pytest.fixture
def witness(model: Model, witnesses: dict[Model, Witness]) -> Witness:
    return witnesses[model]


@pytest.fixture
def sd15_witness(sd15: Model, witnesses: dict[Model, Witness]) -> Witness:
    return witnesses[sd15]
