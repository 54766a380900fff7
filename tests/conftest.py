"""What the tests of the adapters and of the WebUI's side share: LoRA files for the small denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .fakes.loras import write_loras

torch.set_num_threads(1)  # the tensors are too small to share, and sums come out the same on every machine


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write_loras(folder)
    return folder
