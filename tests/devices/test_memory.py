"""Theorems about memory: what a switch takes at its worst, and that scoring takes what is there or says what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from klora_lib import devices
from klora_lib.devices import (
    copy_to_pinned,
    is_out_of_memory,
    is_same_device,
    measure_free_bytes,
    move,
    resolve_device,
)
from klora_lib.engine.memory import MemoryBudget
from klora_lib.engine.merge import Merged
from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.lora.deltas import Delta, Dora, Lora
from klora_lib.lora.lycoris import Loha
from klora_lib.numerics import exact_math
from klora_lib.rule import scoring
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, Unit
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

from ..engine.cases import CPU, rand
from ..pairs import as_file, random_layers
from .away import numbers
from .pretend import OutOfMemory, pretend, put

N = 64  # a layer of N×N: 16 KiB in fp32, its factors of rank 2 a thirty-second of that


def low_rank(seed: int) -> Delta:
    return Lora(rand(N, 2, seed=seed).half(), rand(2, N, seed=seed + 1).half(), 0.5, (N, N))


def dora(seed: int) -> Delta:
    return Dora(low_rank(seed), rand(N, 1, seed=seed).abs() + 0.5)


def loha(seed: int) -> Delta:
    return Loha(*(rand(*s, seed=seed + i) for i, s in enumerate([(N, 2), (2, N)] * 2)), 0.5, (N, N))


# --- the peak of a switch ---


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("makers", "wide"), [
    ((low_rank,), 1), ((low_rank, low_rank), 1),
    ((loha, low_rank), 3),  # the sum, and the two products of a LoHa
    ((low_rank, dora), 3), ((dora, low_rank), 3),  # the sum, the update, and the factors of a norm
    ((dora, dora), 4),  # only these need the base a second time
])  # fmt: skip
def test_a_switch_of_a_half_precision_weight_takes_one_wide_copy(
    makers: tuple[Callable[[int], Delta], ...], wide: int, there: bool
) -> None:
    """Args: wide: fp32 matrices at the worst moment.  there: is the backup on the device?"""
    with pretend("cuda") as device:
        module = put(nn.Linear(N, N, bias=False).half(), device)
        deltas = SiteDeltas(*(WeightedDelta(make(7 * i), 0.8) for i, make in enumerate(makers)), *[None] * (2 - len(makers)))
        actor = Merged(Site(module), deltas, device.device, MemoryBudget(float("inf") if there else 0))
        with exact_math(device.device):
            actor.show(3)
            actor.show(1)
            device.peak = before = device.live
            actor.show(3)
            slack = 8 * N * 2 * 4  # the factors in fp32, and where they have no room in half precision too
            assert device.peak - before <= wide * N * N * 4 + slack
            if len(makers) == 2:
                assert device.peak - before > (wide - 1) * N * N * 4, "the bound is no larger than it has to be"
            actor.close()


def test_the_base_is_copied_only_where_a_second_update_asks_for_it() -> None:
    cloned: list[Tensor] = []
    clone = Tensor.clone

    def counted(tensor: Tensor, **kwargs: object) -> Tensor:
        cloned.append(tensor)
        return clone(tensor, **kwargs)

    for makers, copies in (((low_rank, low_rank), 0), ((loha, loha), 0), ((dora, loha), 0), ((dora, dora), 1)):
        module = nn.Linear(N, N, bias=False).half().requires_grad_(False)
        actor = Merged(Site(module), SiteDeltas(*(WeightedDelta(make(3), 0.8) for make in makers)), CPU, MemoryBudget(0))
        with exact_math(CPU):
            actor.back_up()
            with mock.patch.object(Tensor, "clone", counted):
                cloned.clear()
                actor.show(3)
        assert sum(t.shape == (N, N) and t.dtype == torch.float32 for t in cloned) == copies, makers


def test_pinned_memory_that_cannot_be_had_is_plain_memory() -> None:
    tensor = rand(3, 4, seed=1)
    with mock.patch.object(torch, "empty_like", side_effect=RuntimeError("CUDA error: out of memory")):
        copy = copy_to_pinned(tensor)
    assert torch.equal(copy, tensor) and copy.data_ptr() != tensor.data_ptr()


# --- devices by name ---


def test_a_device_without_an_index_is_the_current_one() -> None:
    with pretend("cuda") as device:
        assert resolve_device("cuda") == resolve_device(torch.device("cuda", 0)) == device.device
        assert is_same_device(torch.device("cuda"), device.device) and not is_same_device(device.device, CPU)
        with mock.patch.object(torch.cuda, "current_device", lambda: 1):
            assert resolve_device("cuda") == torch.device("cuda", 1)
            assert not is_same_device(torch.device("cuda"), device.device)
    assert resolve_device("cpu") == CPU and resolve_device("mps") == torch.device("mps", 0)
    assert resolve_device("meta") == torch.device("meta")


def test_the_fast_way_is_taken_on_a_device_by_its_name_alone() -> None:
    """An fp32 weight is summed in place: "cuda" is "cuda:0"."""
    with pretend("cuda") as device:
        module = put(nn.Linear(N, N, bias=False), device)
        deltas = SiteDeltas(WeightedDelta(low_rank(3), 0.8), None)
        actor = Merged(Site(module), deltas, torch.device("cuda"), MemoryBudget(float("inf")))
        with exact_math(device.device):
            actor.show(1)
            device.peak = before = device.live
            actor.show(1)
        assert device.peak - before < N * N * 4


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_what_is_free(kind: str) -> None:
    if not hasattr(torch, kind):
        pytest.skip(f"this torch has no torch.{kind}")
    with pretend(kind, capacity=1 << 20, cached=1 << 10) as device:
        keep = torch.zeros(1 << 10, device=kind)
        assert measure_free_bytes(torch.device(kind)) == measure_free_bytes(keep.device) == (1 << 20) - device.live


def test_a_device_that_does_not_tell_is_taken_to_have_little() -> None:
    assert measure_free_bytes(torch.device("privateuseone")) == devices.UNKNOWN_FREE < 1 << 30
    with pretend("xpu"), mock.patch.object(torch, "xpu", SimpleNamespace(current_device=lambda: 0), create=True):
        assert measure_free_bytes(torch.device("xpu")) == devices.UNKNOWN_FREE
    assert measure_free_bytes(CPU) == float("inf")


def test_numbers_cross_in_the_narrower_type() -> None:
    with pretend("cuda") as device:
        for own, wanted in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float16)):
            x = rand(5, seed=1).to(own)
            assert torch.equal(numbers(move(x, "cuda", wanted)), x.to(wanted))
        assert {min(there.itemsize, here.itemsize) for _, there, here in device.copied} == {2}
        assert [size for size, *_ in device.copied] == [10, 10, 10]


# --- scoring ---


def units(n: int = N) -> list[Unit]:
    return [Unit("mid_block.attentions.0.proj_in", low_rank(1), low_rank(5)), Unit("conv_in", dora(9), None)]


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "privateuseone"])
@pytest.mark.parametrize("capacity", [1 << 40, 2 * N * N * 4, 100])
def test_scores_are_the_same_where_the_device_has_no_room(kind: str, capacity: int) -> None:
    """What the device says it has decides; one that says nothing is tried where little is needed."""
    want = score_units(units(), "auto", CPU)
    with pretend(kind, capacity=capacity) as device:
        asked = torch.device(kind)
        got = score_units(units(), "auto", asked, MemoryBudget.on(asked, 0).free)
        silent = measure_free_bytes(asked) == devices.UNKNOWN_FREE
        assert (device.peak > 0) == (capacity == 1 << 40 or (silent and capacity > 100))
        assert device.live == 0
    for name in ("content_topk", "style_topk", "content_abs", "style_abs"):
        assert torch.allclose(getattr(got, name), getattr(want, name), rtol=1e-6)


@pytest.mark.parametrize("share", [1, 2, 3])
def test_memory_that_is_not_there_though_it_was_told_sends_scoring_to_the_cpu(share: int) -> None:
    with pretend("cuda", capacity=share * N * N * 4 + 100) as device:
        got = score_units(units(), "auto", torch.device("cuda"), free=1e12)
        assert device.peak > 0 and device.live == 0
    assert torch.allclose(got.content_abs, score_units(units(), "auto", CPU).content_abs, rtol=1e-6)


def test_scoring_keeps_to_what_it_says_it_needs() -> None:
    with pretend("cuda") as device:
        score_units(units(), "auto", torch.device("cuda"))
        assert device.peak <= scoring.PRODUCTS * N * N * 4


def test_directions_of_a_style_are_found_where_there_is_memory() -> None:
    pair = Pair(as_file(random_layers(1), "one"), as_file(random_layers(2), "two"), (Unit("x", low_rank(1), loha(5)),), ())
    settings = Settings(method="np")
    want = Library().measure(pair, settings, CPU).directions[0]
    with pretend("cuda", capacity=100) as device:
        got = Library().measure(pair, settings, device.device, 0.0).directions[0]
        assert device.live == 0
    assert want is not None and got is not None and torch.allclose(got, want)


def test_what_an_allocator_says_is_known() -> None:
    for text in ("CUDA out of memory. Tried to allocate 2.00 GiB", "MPS backend out of memory (MPS allocated: 9 GB)",
                 "XPU out of memory. Tried", "Could not allocate tensor with 9 bytes. There is not enough GPU video memory",
                 "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(text)), text
    assert is_out_of_memory(OutOfMemory("full")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("two", [(low_rank, low_rank), (dora, dora), (dora, loha), (low_rank, dora)])
def test_where_the_backup_lies_changes_no_bit(two: tuple[Callable[[int], Delta], ...], dtype: torch.dtype) -> None:
    weights = []
    for free in (float("inf"), 0):
        with pretend("cuda") as device:
            module = nn.Linear(N, N, bias=False)
            module.weight.data = rand(N, N, seed=2)
            before = put(module.to(dtype), device).weight.inner.clone()
            deltas = SiteDeltas(*(WeightedDelta(make(7 * i), 0.8) for i, make in enumerate(two)))
            actor = Merged(Site(module), deltas, device.device, MemoryBudget(free))
            with exact_math(device.device):
                for masks in (1, 3, 2, 3):
                    actor.show(masks)
                weights.append(numbers(module.weight).clone())
                actor.close()
            assert torch.equal(numbers(module.weight), before)
    assert torch.equal(*weights)
