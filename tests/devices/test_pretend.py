"""The pretended device is held to what a real one does: it must bite, or the audit proves nothing."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from .away import numbers
from .pretend import OutOfMemory, pretend, put

KINDS = ("cuda", "xpu", "mps", "privateuseone")
KB = 1024


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_says_where_it_is_and_keeps_its_numbers(kind: str) -> None:
    with pretend(kind):
        host = torch.randn(3, 4)
        there = host.to(kind)
        assert there.device == torch.device(kind, 0) != torch.device(kind) and host.device.type == "cpu"
        assert (there @ there.T).device == there.device
        assert torch.equal((there @ there.T + 1).cpu(), host @ host.T + 1)
        for made in (torch.zeros(2, 2, device=kind), torch.empty_like(there), there.new_ones(2), there[1:].T.float()):
            assert made.device == there.device
        with torch.inference_mode():
            out = torch.empty(3, 3, device=f"{kind}:0")
            torch.mm(there, there.T, out=out)
            assert out.add_(1) is out
        assert torch.equal(numbers(out), host @ host.T + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_compute_there(kind: str) -> None:
    layers = [nn.Linear(4, 3), nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), nn.LayerNorm(4), nn.GroupNorm(2, 4)]
    shapes = [(2, 4), (1, 4, 5, 5), (2, 4), (2, 4)]
    with pretend(kind) as device, torch.no_grad():
        for layer, shape in zip(layers, shapes):
            x = torch.randn(shape)
            want = layer(x)
            assert torch.allclose(numbers(put(layer, device)(x.to(kind))), want, atol=1e-6)
            with pytest.raises(RuntimeError, match="same device"):
                layer(x)


def test_mixing_devices_raises_and_a_number_of_the_host_does_not() -> None:
    with pretend("cuda"):
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for act in (lambda: there + here, lambda: here.add_(there), lambda: torch.cat([there, here]),
                    lambda: torch.add(here, here, out=there), lambda: torch.where(here > 0, there, there)):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device"):
                act()
        assert torch.equal(numbers(there * torch.tensor(2.0)), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="no xpu"):
            there.to("xpu")


@pytest.mark.parametrize(("kind", "error"), [("cuda", OutOfMemory), ("xpu", OutOfMemory), ("mps", RuntimeError)])
def test_memory_is_counted_by_storage_and_ends(kind: str, error: type[Exception]) -> None:
    with pretend(kind, capacity=10 * KB) as device:
        one = torch.zeros(KB, device=kind)
        view, half = one.view(32, 32)[1:], one.detach()
        assert device.live == 4 * KB
        two = one + 1
        assert device.live == device.peak == 8 * KB
        one.add_(two)
        with pytest.raises(error, match="out of memory"):
            one + two
        assert device.live == 8 * KB
        del one
        assert device.live == 8 * KB, "its views are still there"
        del view, half
        gc.collect()
        assert device.live == 4 * KB and device.peak == 8 * KB
        torch.zeros(KB, device=kind)
        assert device.live == 4 * KB
        del two
    assert device.live == 0


def test_figures_are_those_of_torch() -> None:
    with pretend("cuda", capacity=100 * KB, cached=10 * KB) as device:
        keep = torch.zeros(KB, device="cuda")
        with pytest.raises(ValueError, match="index"):
            torch.cuda.mem_get_info(torch.device("cuda"))
        assert torch.cuda.mem_get_info(keep.device) == (86 * KB, 100 * KB)
        assert torch.cuda.memory_reserved(keep.device) - torch.cuda.memory_allocated(keep.device) == 10 * KB
        assert device.live == 4 * KB
    assert not torch.cuda.is_available()


def test_what_the_host_waits_for_is_counted() -> None:
    with pretend("cuda") as device:
        torch.arange(4.0).to("cuda")
        torch.arange(4.0).to("cuda", non_blocking=True)  # pageable memory: the driver waits all the same
        assert device.waits == 2
        there = torch.arange(4.0).pin_memory().to("cuda", non_blocking=True)
        there.mul_(2).add_(there)
        assert device.waits == 2
        for act in (there.sum().item, lambda: float(there[0]), lambda: bool(there[0] > 1), lambda: there[there > 1],
                    there.nonzero, there.cpu, lambda: torch.equal(there, there), torch.cuda.synchronize,
                    lambda: there.copy_(torch.zeros(4)), lambda: torch.zeros(4).copy_(there)):  # fmt: skip
            before = device.waits
            act()
            assert device.waits == before + 1, act


def test_a_copy_that_has_not_arrived_must_not_be_touched() -> None:
    with pretend("cuda"):
        pinned = torch.ones(4).pin_memory()
        there = pinned.to("cuda", non_blocking=True)
        pinned.sum()  # reading is no harm
        with pytest.raises(AssertionError, match="on its way"):
            pinned.zero_()
        torch.cuda.synchronize()
        pinned.zero_().copy_(there, non_blocking=True)
        with pytest.raises(AssertionError, match="on its way"):
            pinned.sum()
        torch.cuda.synchronize()
        assert float(pinned.sum()) == 4


def test_products_are_coarse_under_tf32_and_autocast() -> None:
    with pretend("cuda"):
        x = torch.full((2, 2), 1 + 2**-12, device="cuda")
        exact = numbers(x @ x)
        with torch.autocast("cuda", dtype=torch.float16):
            assert not torch.equal(numbers(torch.mm(x, x)).float(), exact)
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            assert not torch.equal(numbers(x @ x), exact)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        assert torch.equal(numbers(x @ x), exact)


def test_conversions_on_the_way_are_told() -> None:
    with pretend("cuda") as device:
        torch.ones(4, dtype=torch.float16).to("cuda").float()
        torch.ones(4, dtype=torch.float16).to("cuda", torch.float32)
        assert [there == here for _, there, here in device.copied] == [True, False]
