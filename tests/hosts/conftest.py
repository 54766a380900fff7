"""The fake host without our script: the adapter alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..fakes.a1111 import FakeA1111, installed
from ..fakes.loras import write_loras

torch.set_num_threads(1)  # the tensors are too small to share


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write_loras(folder)
    return folder


@pytest.fixture
def host(loras: Path) -> Iterator[FakeA1111]:
    with installed(loras) as host:
        yield host
