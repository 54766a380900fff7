"""The fake hosts, with LoRA files and our script loaded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gradio's own, at import
    import gradio  # noqa: F401

from ..fakes.a1111 import FakeA1111
from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, installed


@pytest.fixture
def a1111(loras: Path) -> Iterator[FakeA1111]:
    with installed(FakeA1111, loras) as host:
        host.load_script()
        yield host


@pytest.fixture
def forge(loras: Path) -> Iterator[FakeForge]:
    with installed(FakeForge, loras) as host:
        host.load_script()
        yield host


@pytest.fixture(params=["a1111", "forge"])
def host(request: pytest.FixtureRequest) -> FakeHost:
    """A test that asks for this one holds on both."""
    return request.getfixturevalue(request.param)
