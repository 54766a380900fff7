"""The fake A1111 without our script: the adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..fakes.a1111 import FakeA1111
from ..fakes.host import installed


@pytest.fixture
def host(loras: Path) -> Iterator[FakeA1111]:
    with installed(FakeA1111, loras) as host:
        yield host
