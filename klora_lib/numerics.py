"""Arithmetic in full fp32, independent of autocast and TF32 settings of the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch

UNROUNDED = ("ieee", "none")  # torch's names for precisions of fp32 products that do not round
SWITCHING = Lock()  # the settings are the process's: a thread must not take for the host's what another one is trying out


@contextmanager
def exact_math(device: torch.device) -> Iterator[None]:
    """Disables autocast, TF32 and autograd; weights that were made in inference mode may be written.

    Hosts sample with autocast and TF32, and both would round ΔW to about ten bits.  Products may also be computed on the
    CPU, so its autocast is disabled too.
    """
    with ExitStack() as stack:
        stack.enter_context(disable_grad(device))
        for kind in {device.type, "cpu"}:
            stack.enter_context(disable_autocast(kind))
        for matmul in find_precision_switches(device):
            stack.enter_context(disable_rounding(matmul))
        yield


def disable_grad(device: torch.device) -> AbstractContextManager[Any]:
    """Inference mode.  On a back end outside torch (DirectML), which cannot write in it: only if the host is in it."""
    if device.type == "privateuseone" and not torch.is_inference_mode_enabled():
        return torch.no_grad()
    return torch.inference_mode()


def disable_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast off on devices of this type.  If a type has no autocast, different versions of torch raise other errors."""
    try:
        return torch.autocast(kind, enabled=False)
    except (RuntimeError, AttributeError, AssertionError):
        return nullcontext()


def find_precision_switches(device: torch.device) -> list[Any]:
    """Torch's settings for the precision of fp32 products on ``device``, and on the CPU if it has one."""
    switches: list[Any] = [torch.backends.cuda.matmul] if device.type == "cuda" else []
    cpu = getattr(torch.backends.mkldnn, "matmul", None)
    return [*switches, cpu] if has_precision(cpu) else switches


def has_precision(matmul: Any) -> bool:
    """Whether this version of torch has ``fp32_precision``.  Older ones raise AssertionError for unknown attributes."""
    try:
        return isinstance(matmul.fp32_precision, str)
    except (AttributeError, AssertionError):
        return False


@contextmanager
def disable_rounding(matmul: Any) -> Iterator[None]:
    """Full fp32 in these products.  Afterwards the host's setting is restored, through the same interface.

    Since 2.9 torch has a second interface, ``fp32_precision``, with a default for all back ends and a value for each one.
    After the second interface was used, reading the first one (``allow_tf32``) raises.
    """
    name, full = ("fp32_precision", "ieee") if has_precision(matmul) else ("allow_tf32", False)
    with SWITCHING:
        rounds = getattr(matmul, name) not in (*UNROUNDED, False)
        if rounds:
            owner: Any = torch.backends if name == "fp32_precision" and inherits_precision(matmul) else matmul
            before = getattr(owner, name)
            setattr(owner, name, full)
    try:
        yield
    finally:
        if rounds:
            with SWITCHING:
                setattr(owner, name, before)


def inherits_precision(matmul: Any) -> bool:
    """Whether these products have no precision of their own, and so use the default for all back ends."""
    backends: Any = torch.backends
    before, present = backends.fp32_precision, matmul.fp32_precision
    backends.fp32_precision = "ieee"
    try:
        return bool(matmul.fp32_precision != present)
    finally:
        backends.fp32_precision = before
