"""What the tests share: LoRA files for the small denoiser; and how they are spread over processes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
import torch

from .fakes.loras import write_loras

MEMORY = 1.5e9  # bytes that a process of tests may need
torch.set_num_threads(1)  # the tensors are too small to share, and sums come out the same on every machine


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each core that we may use, but no more than the free memory holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / MEMORY)))


def pytest_collection_finish() -> None:
    """All libraries and tests are loaded: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write_loras(folder)
    return folder
