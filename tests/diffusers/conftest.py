"""One pipeline a family for all tests that leave it as it was, and that is checked after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .loras import differing, snapshot, write_pair
from .pipes import FAMILIES, image

Make = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """diffusers 0.39 gives torch tensors to numpy 2 in the old way."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"))
            item.add_marker(pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar"))


def first_used(built: dict[str, Any], family: str) -> Any:
    """diffusers hangs a thing or two of its own on a model at its first image."""
    if family not in built:
        built[family] = FAMILIES[family]()
        image(built[family], steps=1)
    return built[family]


@pytest.fixture(scope="session")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def make(built: dict[str, Any]) -> Iterator[Make]:
    """``make("flux")``: the session's pipeline of a family, its scheduler as built; that it is restored is checked."""
    lent: dict[str, tuple[Any, dict[str, Any]]] = {}

    def lend(family: str) -> Any:
        pipe = first_used(built, family)
        if family not in lent:
            lent[family] = pipe.scheduler, snapshot(pipe)
        return pipe

    yield lend
    for family, (scheduler, before) in lent.items():
        assert differing(before, snapshot(built[family])) == []
        built[family].scheduler = type(scheduler).from_config(scheduler.config)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Any]) -> Callable[..., tuple[Path, Path]]:
    """``files("flux", text=True)``: content and style for a family."""
    known: dict[Any, tuple[Path, Path]] = {}

    def get(family: str, text: bool = False, only: str = "") -> tuple[Path, Path]:
        if (family, text, only) not in known:
            pipe = first_used(built, family)
            known[family, text, only] = write_pair(pipe, tmp_path_factory.mktemp(family), text, only)
        return known[family, text, only]

    return get


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    FAMILIES["sd15"]().save_pretrained(folder)
    return folder


@pytest.fixture
def ask(model: Path, files: Callable, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line that works, and what to change in it (None takes an option away)."""
    content, style = files("sd15", text=True)

    def words(command: str, **changed: str | None) -> list[str]:
        options = {
            "model": str(model), "content": str(content), "style": str(style), "prompt": "a dog, wet", "steps": "3",
            "cfg": "4", "size": "32x16", "seed": "7", "device": "cpu", "out": str(tmp_path / "out"),
        }  # fmt: skip
        options |= {name.replace("_", "-"): value for name, value in changed.items()}  # type: ignore[dict-item]
        return [command, *(word for name, value in options.items() if value is not None for word in (f"--{name}", value))]

    return words
