"""Theorem: on every kind of device, with every engine, every step is that of the dense reference, and nothing is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from klora_lib import devices, numerics
from klora_lib.engine import session
from klora_lib.engine.bypass import Bypassed
from klora_lib.engine.memory import MemoryBudget
from klora_lib.engine.merge import Merged
from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.errors import HostError
from klora_lib.lora.deltas import Lora
from klora_lib.rule.scoring import score_units

from ..engine.cases import CPU
from ..engine.stack import prepare
from .audit import STEPS, Where, every_second, everywhere, nowhere, open_job, whole_job
from .pretend import Device, OutOfMemory, pretend, put

KINDS = ("cuda", "xpu", "mps", "privateuseone")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
HALF = torch.bfloat16  # CPUs of every torch compute with it


def half_convolutions() -> bool:
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 1, 1).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_job(kind: str, engine: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and kind == "privateuseone":
        pytest.skip("DirectML has no bfloat16")
    if dtype == torch.float16 and not half_convolutions():
        pytest.skip("the CPU of this torch has no convolution in float16")
    with pretend(kind) as device:
        job = whole_job(device, engine, dtype)
    assert sum(job.seen.switches) > len(job.run.session.masks), "layers switch within the pass"


@pytest.mark.parametrize("where", [nowhere, every_second])
@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_a_host_keeps_in_its_own_memory(kind: str, engine: str, where: Where) -> None:
    with pretend(kind) as device:
        whole_job(device, engine, HALF, where)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_device_has_no_room(kind: str, engine: str) -> None:
    with pretend(kind) as device:
        whole_job(device, engine, reserve=1 << 50)


def test_nothing_is_converted_on_its_way_to_a_cuda_device() -> None:
    """The CPU would do it, and twice as many bytes would cross."""
    for where in (everywhere, nowhere):
        with pretend("cuda") as device:
            whole_job(device, "merge", HALF, where, reserve=1 << 50)
            assert device.copied and all(there == here for _, there, here in device.copied)


# --- memory ---


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_claimed_comes_back(kind: str, engine: str) -> None:
    with pretend(kind) as device:
        job = open_job(device, engine, HALF)
        running = job.run.session
        before = running.budget.free, running.budget.pinned
        for t in range(STEPS):
            job.step(t)
            job.forward()
            with running.aside():
                assert (running.budget.free, running.budget.pinned) == before
                assert device.live == job.live
        running.close()
        assert (running.budget.free, running.budget.pinned) == before


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_memory_that_ends_at_any_point_of_a_pass_ends_it_in_one_sentence(kind: str, engine: str) -> None:
    """At every single allocation of the pass: the model is as it was, and nothing of ours is left on the device."""
    with pretend(kind) as device:
        job = open_job(device, engine, HALF)
        running = job.run.session
        with failing_at(device, -1) as made:
            walk(job)
        running.undo()
        assert made[0] > 10
        for k in range(made[0]):
            with failing_at(device, k), pytest.raises(HostError, match=" has no memory left to change .*, one of "):
                walk(job)
            running.undo()
            job.check_closed()
        walk(job)
        running.close()
        job.check_closed()


@pytest.mark.parametrize("make", [nn.Linear, lambda i, o: nn.Conv2d(i, o, 1)], ids=["linear", "convolution"])
def test_memory_that_ends_within_a_forward_is_one_sentence(make: Any) -> None:
    with pretend("cuda") as device:
        module = put(make(6, 8), device)
        delta = Lora(torch.ones(8, 2), torch.ones(2, 6), 1.0, (8, 6), torch.ones(8))
        x = put(nn.Linear(6, 6), device).weight.detach()
        x = x if isinstance(module, nn.Linear) else x[None, :, :, None]
        output = module(x).detach()

        def forward() -> None:
            actor = Bypassed(Site(module), SiteDeltas(WeightedDelta(delta, 0.8), None))
            actor.show(1)
            actor.add(module, (x,), output)
            actor.close()

        with failing_at(device, -1) as made:
            forward()
        assert made[0] > 3
        for k in range(made[0]):
            with failing_at(device, k), pytest.raises(HostError, match="no memory left to add the LoRAs to the output"):
                forward()


def walk(job: Any) -> None:
    """Every choice of every site, without a forward."""
    running = job.run.session
    for masks in (1, 2, 3):
        running.show(torch.full_like(running.masks, masks))


@contextmanager
def failing_at(device: Device, k: int) -> Iterator[list[int]]:
    """The allocation number ``k`` from here finds no memory.  Gives how many there were."""
    made, wrap = [0], device.wrap

    def failing(inner: Tensor) -> Any:
        live = device.live
        away = wrap(inner)
        if device.live > live:
            made[0] += 1
            if made[0] == k + 1:
                raise device.full(device.live - live)
        return away

    device.wrap = failing  # type: ignore[method-assign]
    try:
        yield made
    finally:
        device.wrap = wrap  # type: ignore[method-assign]


# --- a card of just the size, and the five mutations ---

ACTIVATIONS = 16 << 10  # of the denoiser, in bytes; more than one switch needs for its work


def on_a_small_card(kind: str = "cuda", cached: int = 0) -> None:
    """A whole job where weights and activations fit, and nothing else."""
    with pretend(kind) as device:
        model = open_job(device, "merge", HALF).live
    with pretend(kind, capacity=model + ACTIVATIONS + (2 << 10), cached=cached) as device:
        whole_job(device, "merge", HALF, reserve=ACTIVATIONS, activations=ACTIVATIONS)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_sampling_keeps_the_memory_it_needs(kind: str) -> None:
    if not hasattr(torch, kind):
        pytest.skip(f"this torch has no torch.{kind}, so nothing tells what is free")
    on_a_small_card(kind)


def test_what_torch_keeps_in_reserve_is_free() -> None:
    on_a_small_card(cached=8 << 10)


def asks_nobody(device: torch.device) -> float:
    """The memory of the card instead of what is free of it."""
    return float(torch.cuda.mem_get_info(0)[1])


on = MemoryBudget.on.__func__  # type: ignore[attr-defined]
MUTATIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing is reserved": lambda: mock.patch.object(MemoryBudget, "on", lambda device, _: on(MemoryBudget, device, 0)),
    "mem_get_info is not asked": lambda: mock.patch("klora_lib.engine.memory.measure_free_bytes", asks_nobody),
    "there is always room": lambda: mock.patch.object(MemoryBudget, "on", lambda *_: MemoryBudget(float("inf"))),
    "backups are always beside": lambda: mock.patch.object(Merged, "copy_backup", lambda self, tensor: tensor.clone()),
    "TF32 is left on": lambda: mock.patch.object(numerics, "find_precision_switches", lambda device: []),
    "the device is asked as it came": lambda: as_it_came(),
}

CAUGHT = {"TF32 is left on": "beyond one rounding", "the device is asked as it came": "specified index"}  # by what it says


@contextmanager
def as_it_came() -> Iterator[None]:
    name = "resolve_device"
    with mock.patch.object(devices, name, torch.device), mock.patch.object(session, name, torch.device):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """As hosts set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_of_the_host_does_not_reach_the_weights() -> None:
    with tf32():
        on_a_small_card()
        with pretend("cuda"):
            there = score_units(prepare().pair.units, "auto", torch.device("cuda"))
    here = score_units(prepare().pair.units, "auto", CPU)
    assert torch.allclose(there.content_topk, here.content_topk, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_mutation_is_caught(mutation: str) -> None:
    """The audit above would be worth nothing if it passed without what it is about."""
    with tf32():
        on_a_small_card()
        with MUTATIONS[mutation](), pytest.raises((AssertionError, OutOfMemory, ValueError)) as caught:
            on_a_small_card()
    assert re.search(CAUGHT.get(mutation, "out of memory"), str(caught.value))
