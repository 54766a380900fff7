"""How often the host waits for the device: exact numbers, each with its reason."""

from __future__ import annotations

import pytest
import torch

from klora_lib.engine.bypass import Bypassed

from ..engine.stack import NAMES
from .audit import STEPS, open_job
from .pretend import pretend

HALF = torch.bfloat16  # CPUs of every torch compute with it


def test_the_host_waits_for_no_switch_by_merge() -> None:
    """0 a switch, once a weighted has been there before: backup and factors are on the device, and nothing is read from it.

    The first time, every tensor of the weighted is copied from the file's pageable memory, and each such copy waits.  aside
    forgets, so that the second half of the job copies again.
    """
    with pretend("cuda") as device:
        job = open_job(device, "merge", HALF)
        for t in range(STEPS):
            job.step(t)
        first = dict(zip(job.seen.switches, job.seen.waits))
        assert first[max(first)] > 0
        running = job.run.session
        for masks in (1, 2, 3, 2, 1):  # everything has been shown by now, or is shown once more here
            running.show(torch.full_like(running.masks, masks))
        switches, waits = 0, device.waits
        for masks in (2, 1, 3, 1):
            switches += running.show(torch.full_like(running.masks, masks))
        assert switches == 4 * len(running.masks) and device.waits == waits
        running.close()
        assert device.waits == waits, "the backups are on the device: nothing is waited for at the end"
        job.check_closed()


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_a_step_without_a_switch_waits_for_nothing(engine: str) -> None:
    """And no call of a layer does, but a bypassed one's first after its switch, which brings the factors over."""
    with pretend("cuda") as device:
        job = open_job(device, engine, HALF)
        still = 0
        for t in range(STEPS):
            job.step(t)
            if job.seen.switches[-1] == 0:
                still += 1
                assert job.seen.waits[-1] == 0
            else:
                job.forward()
            before = device.waits
            job.forward()
            assert device.waits - before == len(NAMES), "one a layer: the input of these tests comes from host memory"
        assert still >= 2
        job.run.session.close()


def test_a_bypassed_switch_waits_for_the_copies_of_its_factors_alone() -> None:
    """Per weighted that acts: up and down, and the bias where it has one; a LoHa is four factors and reads no base.

    The hook itself moves nothing: the copies are made at the first call after the switch.
    """
    with pretend("cuda") as device:
        job = open_job(device, "bypass", torch.float32)
        running = job.run.session
        names = [u.name for u in (*job.run.pair.units, *job.run.pair.added)]
        for actor, name in zip(running.actors, names):
            if not isinstance(actor, Bypassed):
                continue
            before = device.waits
            actor.show(3)
            assert device.waits == before
            x = job.input(name).to("cuda")
            before = device.waits
            for _ in range(3):
                job.run.stack[name](x)
            deltas = [weighted for weighted in (actor.deltas.content, actor.deltas.style) if weighted is not None]
            copies = sum((4 if name.endswith("ff.net.2") else 2) + (weighted.delta.bias is not None) for weighted in deltas)
            assert device.waits - before == copies, name
        running.close()


def test_without_room_a_switch_waits_only_for_what_is_not_pinned() -> None:
    """Backups and factors lie in pinned memory: after its first switch a weight's next ones wait for nothing."""
    with pretend("cuda") as device:
        job = open_job(device, "merge", HALF, reserve=1 << 50)
        running = job.run.session
        for masks in (3, 1, 2):
            running.show(torch.full_like(running.masks, masks))
        waits = device.waits
        for masks in (1, 2, 3):
            running.show(torch.full_like(running.masks, masks))
        running.close()
        assert device.waits == waits
        job.check_closed()
