"""Arithmetic that stays fp32 whatever is switched on around us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

FULL = ("ieee", "none")  # of torch's names for a precision of fp32 products: those that do not round


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """Disables autocast, TF32 and autograd; weights that were made in inference mode may be written.

    Hosts sample under autocast and with TF32; either would round ΔW to about ten bits.  Products may also be taken on the
    CPU, so its autocast is disabled as well.
    """
    with ExitStack() as stack:
        stack.enter_context(without_grad(device))
        for kind in {device.type, "cpu"}:
            stack.enter_context(without_autocast(kind))
        for matmul in products(device):
            stack.enter_context(unrounded(matmul))
        yield


def without_grad(device: torch.device) -> AbstractContextManager[Any]:
    """Inference mode; on a back end outside torch (DirectML), which cannot write in it, no more than the host has on."""
    if device.type == "privateuseone" and not torch.is_inference_mode_enabled():
        return torch.no_grad()
    return torch.inference_mode()


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """No autocast on devices of this type.  Each version of torch raises something else where a type has none."""
    try:
        return torch.autocast(kind, enabled=False)
    except (RuntimeError, AttributeError, AssertionError):
        return nullcontext()


def products(device: torch.device) -> list[Any]:
    """Torch's switches for the precision of fp32 products on ``device``, and on the CPU where there is one for it."""
    switches: list[Any] = [torch.backends.cuda.matmul] if device.type == "cuda" else []
    cpu = getattr(torch.backends.mkldnn, "matmul", None)
    return [*switches, cpu] if has_precision(cpu) else switches


def has_precision(matmul: Any) -> bool:
    """Whether this torch has the second interface.  Older ones raise AssertionError for what they do not know."""
    try:
        return isinstance(matmul.fp32_precision, str)
    except (AttributeError, AssertionError):
        return False


@contextmanager
def unrounded(matmul: Any) -> Iterator[None]:
    """Full fp32 in these products; afterwards exactly what the host had chosen, in the way it chose it.

    Since 2.9 torch has a second interface for this, with a default for all back ends above each one's own choice, and
    reading the first interface raises once the second was used.
    """
    name, full = ("fp32_precision", "ieee") if has_precision(matmul) else ("allow_tf32", False)
    if getattr(matmul, name) in (*FULL, False):
        yield
        return
    owner: Any = torch.backends if name == "fp32_precision" and inherits_precision(matmul) else matmul
    before = getattr(owner, name)
    setattr(owner, name, full)
    try:
        yield
    finally:
        setattr(owner, name, before)


def inherits_precision(matmul: Any) -> bool:
    """Whether these products have no precision of their own, and follow the default for all back ends."""
    every: Any = torch.backends
    before, mine = every.fp32_precision, matmul.fp32_precision
    every.fp32_precision = "ieee"
    try:
        return bool(matmul.fp32_precision != mine)
    finally:
        every.fp32_precision = before
