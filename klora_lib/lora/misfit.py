"""What is said of a module's tensors that do not make a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Misfit(Exception):
    """A fact about a module, still without its layer's name."""


def format_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def format_size(tensor: Tensor) -> str:
    return format_shape(tensor.shape)
