"""One real WebUI of each kind for all live tests. Needs installed ones and tiny models; skips where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .host import Host
from .jobs import Model
from .kinds import KINDS, install, missing
from .witness import Witness

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a WebUI of some kind one test says so for all; marked tests are left to the kinds they are for."""
    dropped, told = set(), set()
    for item in items:
        if Path(__file__).parent not in item.path.parents or "kind" not in getattr(item, "fixturenames", ()):
            continue
        name = item.callspec.params["kind"]
        only = item.get_closest_marker("hosts")
        if only is not None and name not in only.args:
            dropped.add(item)
        elif lacking := missing(KINDS[name]):
            if name in told:
                dropped.add(item)
            told.add(name)
            item.add_marker(pytest.mark.skip(reason="not set: " + ", ".join(lacking)))
    config.hook.pytest_deselected(items=list(dropped))
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def running(host: Host) -> Iterator[Host]:
    try:
        host.start(host.sd15.checkpoint)
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="session")
def host(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    # the probe's name comes first, so that it sees the WebUI before the extension does
    extensions = {"a-probe": Path(__file__).parent / "extension", "klora": REPOSITORY, **KINDS[kind].sizes}
    yield from running(install(KINDS[kind], tmp_path_factory.mktemp(kind), extensions))


@pytest.fixture(scope="session")
def bare_host(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The WebUI without any extension of ours."""
    yield from running(install(KINDS[kind], tmp_path_factory.mktemp(f"bare_{kind}"), {}))


@pytest.fixture(scope="session", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    """Session-wide, so that pytest groups the tests by checkpoint: loading one costs seconds."""
    return request.param


@pytest.fixture(scope="session")
def witnesses(host: Host) -> dict[Model, Witness]:
    return {}


def ready(host: Host, model: Model, witnesses: dict[Model, Witness]) -> Model:
    host.use(model.checkpoint)
    if model not in witnesses:
        witnesses[model] = Witness(host, model)
    return model


@pytest.fixture
def model(host: Host, family: str, witnesses: dict[Model, Witness]) -> Model:
    return ready(host, host.models[family], witnesses)


@pytest.fixture
def sd15(host: Host, witnesses: dict[Model, Witness]) -> Model:
    return ready(host, host.sd15, witnesses)


@pytest.fixture
def witness(model: Model, witnesses: dict[Model, Witness]) -> Witness:
    return witnesses[model]


@pytest.fixture
def sd15_witness(sd15: Model, witnesses: dict[Model, Witness]) -> Witness:
    return witnesses[sd15]
