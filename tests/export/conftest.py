"""Two LoRA files in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from .saving import write


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path / "cat.safetensors", 0), write(tmp_path / "wash.safetensors", 1)
