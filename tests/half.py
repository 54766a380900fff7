"""Half precision on a CPU: torch 2.1, which AUTOMATIC1111 1.10 has, multiplies no matrices in it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch


def refused() -> str:
    """What torch says when asked for a product and a convolution in fp16; "" where it computes both."""
    x = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    try:
        torch.nn.functional.linear(x, x[0, 0])
        torch.nn.functional.conv2d(x, x)
    except RuntimeError as e:
        return str(e)
    return ""


WHY = refused()
needs_half = pytest.mark.skipif(WHY != "", reason=f"this torch computes nothing in fp16 on a CPU: {WHY}")


def without_half(cases: Iterable[Any], dtype_of: Callable[[Any], torch.dtype] = lambda dtype: dtype) -> list[Any]:
    """``cases`` for parametrize, those that compute in fp16 skipped where torch cannot."""
    return [pytest.param(case, marks=needs_half) if dtype_of(case) == torch.float16 else case for case in cases]
