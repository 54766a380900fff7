"""Arithmetic that stays fp32 whatever the host has switched on around us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """fp32 means fp32: no autocast, no TF32, no graph; weights made in inference mode may be written.

    Hosts sample under autocast and with TF32 on; either would round ΔW to ten bits.
    """
    cuda = device.type == "cuda"
    tf32 = torch.backends.cuda.matmul.allow_tf32
    without_autocast = nullcontext() if device.type == "mps" else torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), without_autocast:
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            if cuda:
                torch.backends.cuda.matmul.allow_tf32 = tf32
