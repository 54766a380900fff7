"""Theorem: one thread at a time tries out the switches for precision, and they are then as the host has set them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

from klora_lib import numerics
from klora_lib.numerics import exact_math, has_precision


@pytest.fixture
def rounding() -> Iterator[None]:
    """The host has asked for rounded products everywhere."""
    if not has_precision(getattr(torch.backends.mkldnn, "matmul", None)):
        pytest.skip("this version of torch has no fp32_precision")
    matmul: Any = torch.backends.mkldnn.matmul
    before, own = torch.backends.fp32_precision, matmul.fp32_precision
    torch.backends.fp32_precision, matmul.fp32_precision = "tf32", "none"  # none of its own: the default counts
    try:
        yield
    finally:
        torch.backends.fp32_precision, matmul.fp32_precision = before, own


def test_threads_at_once_leave_the_hosts_precision(rounding: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one tries them out, another would take its value for the host's, and leave that one behind."""
    trying: list[int] = []
    most: list[int] = []
    start, original = Barrier(4), numerics.inherits_precision

    def inherits(matmul: Any) -> bool:
        trying.append(1)
        most.append(len(trying))
        time.sleep(0.05)
        found = original(matmul)
        trying.pop()
        return found

    def enter() -> None:
        start.wait(60)
        with exact_math(torch.device("cpu")):
            pass

    monkeypatch.setattr(numerics, "inherits_precision", inherits)
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(enter) for _ in range(4)]:
            each.result(60)
    assert max(most) == 1
    assert torch.backends.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "tf32"
