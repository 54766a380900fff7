"""Theorem: on every kind of device, with every engine, every step is that of the dense reference, and nothing is left."""

from __future__ import annotations

import pytest
import torch

from .audit import Where, every_second, everywhere, nowhere, whole_job
from .pretend import pretend

KINDS = ("cuda", "xpu", "mps", "privateuseone")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_job(kind: str, engine: str, dtype: torch.dtype) -> None:
    with pretend(kind) as device:
        job = whole_job(device, engine, dtype)
    assert sum(job.seen.switches) > len(job.run.session.masks), "layers switch within the pass"


@pytest.mark.parametrize("where", [nowhere, every_second])
@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_a_host_keeps_in_its_own_memory(kind: str, engine: str, where: Where) -> None:
    with pretend(kind) as device:
        whole_job(device, engine, torch.float16, where)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_device_has_no_room(kind: str, engine: str) -> None:
    with pretend(kind) as device:
        whole_job(device, engine, reserve=1 << 50)


def test_nothing_is_converted_on_its_way_to_a_cuda_device() -> None:
    """The CPU would do it, and twice as many bytes would cross."""
    for where in (everywhere, nowhere):
        with pretend("cuda") as device:
            whole_job(device, "merge", torch.float16, where, reserve=1 << 50)
            assert device.copied and all(there == here for _, there, here in device.copied)
