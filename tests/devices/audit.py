"""A whole K-LoRA job on a pretended device, everything about it held to what it must be."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn

from klora_lib.engine import session as sessions
from klora_lib.engine.fit import place_units
from klora_lib.engine.session import Session
from klora_lib.rule.pairing import make_pair
from klora_lib.rule.plan import make_plan
from klora_lib.rule.schedule import compute_step_progress
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

from ..engine.cases import LAYERS, bits, hooks, rand
from ..engine.stack import CONTENT_ONLY, NAMES, NORM, STYLE_ONLY, Prepared, dense, make_file, make_sites, make_stack
from ..engine.test_bypass import answer
from ..engine.test_merge import check_rounded
from ..engine.test_session import masks_at
from .away import Away, numbers, unwatched
from .pretend import Device, put

STEPS, WEIGHTS = 12, (0.9, 1.2)
Where = Callable[[str], bool]  # name of a layer -> is its weight on the device?


def everywhere(name: str) -> bool:
    return True


def nowhere(name: str) -> bool:
    return False


def every_second(name: str) -> bool:
    return [*NAMES, NORM].index(name) % 2 == 0


# --- how a host runs a layer whose weight is in host memory ---


class Streamed:
    """A copy from pinned memory at every forward; nobody waits for it."""

    weight: Tensor
    bias: Tensor | None

    def parameters_at(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        there = {"device": x.device, "non_blocking": True}
        return self.weight.to(**there), None if self.bias is None else self.bias.to(**there)


class StreamedLinear(Streamed, nn.Linear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.parameters_at(x))


class StreamedConv(Streamed, nn.Conv2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.parameters_at(x))


class StreamedNorm(Streamed, nn.LayerNorm):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, *self.parameters_at(x))


STREAMED = {nn.Linear: StreamedLinear, nn.Conv2d: StreamedConv, nn.LayerNorm: StreamedNorm}


def stream(module: nn.Module, device: Device) -> None:
    module.__class__ = STREAMED[type(module)]
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            module._parameters[name] = nn.Parameter(device.pin(parameter.detach()), requires_grad=False)


# --- the job ---


@dataclass
class Seen:
    """Of every step: how many sites switched, and how often the host waited, for that and for the calls of all layers."""

    switches: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    call_waits: list[int] = field(default_factory=list)


@contextmanager
def plain_tensors() -> Iterator[None]:
    """The engine takes a tensor of a type of its own to be packed: here the type is only where it is."""
    name = sessions.name_foreign_type
    with mock.patch.object(sessions, "name_foreign_type", lambda w: "" if isinstance(w, Away) else name(w)):
        yield


@dataclass
class Job:
    """One model with a session open on it."""

    device: Device
    run: Prepared
    before: dict[str, dict[str, Tensor]]  # numbers of every parameter
    bits: dict[str, dict[str, Tensor]]
    live: int  # bytes of the device before the job
    seen: Seen = field(default_factory=Seen)

    def step(self, t: int) -> None:
        """One call of the model, its choice first."""
        session, device = self.run.session, self.device
        switched, waited = session.switches, device.waits
        session.advance(compute_step_progress(t, STEPS))
        self.seen.switches.append(session.switches - switched)
        self.seen.waits.append(device.waits - waited)

    def forward(self) -> dict[str, Tensor]:
        """What every layer answers."""
        xs = {name: self.input(name).to(self.device.device) for name in NAMES}
        waited = self.device.waits
        with torch.no_grad():
            out = {name: self.run.stack[name](x) for name, x in xs.items()}
        self.seen.call_waits.append(self.device.waits - waited)
        return {name: numbers(y) for name, y in out.items()}

    def input(self, name: str) -> Tensor:
        return rand(*LAYERS[NAMES[name]].x, seed=9).to(self.before[name]["weight"].dtype)

    def check(self, t: int, merged: bool) -> None:
        """Every weight and every answer is that of the dense reference."""
        got = self.forward()
        parts = ((name, module._parameters.items()) for name, module in self.run.stack.items())
        held = {(name, key): numbers(p).clone() for name, part in parts for key, p in part if p is not None}
        with unwatched():
            self.compare(t, merged, got, held)

    def compare(self, t: int, merged: bool, got: dict[str, Tensor], held: dict[tuple[str, str], Tensor]) -> None:
        """All in host memory. got: every layer's answer. held: every parameter, by its layer and its name there."""
        want = dense(self.run, self.before, masks_at(self.run, t), WEIGHTS)
        for (name, key), parameter in held.items():
            if merged or name == NORM:
                check_rounded(parameter, want[name][key], self.before[name][key])
            else:
                assert torch.equal(bits(parameter), self.bits[name][key]), (t, name)
        for name in NAMES:
            x = self.input(name)
            expected = answer(self.run.stack[name], want[name]["weight"], want[name].get("bias"), x)
            room = 2e-5 if x.dtype == torch.float32 else 16 * torch.finfo(x.dtype).eps
            assert got[name].dtype == x.dtype
            assert torch.allclose(got[name].double(), expected, atol=room * float(expected.abs().max())), (t, name)

    def check_untouched(self) -> None:
        """Every bit as it was, no hook, nothing of ours in the device's memory."""
        for name, module in self.run.stack.items():
            assert hooks(module) == 0, name
            for key, parameter in module._parameters.items():
                assert parameter is None or torch.equal(bits(numbers(parameter)), self.bits[name][key]), (name, key)

    def check_closed(self) -> None:
        self.check_untouched()
        if self.device.live != self.live:
            gc.collect()
        assert self.device.live == self.live


def open_job(
    device: Device, engine: str, dtype: torch.dtype = torch.float32, where: Where = everywhere, reserve: int = 0
) -> Job:
    """Score, plan, place and open, LoRAs in host memory, the device called by its name alone as hosts do."""
    stack = make_stack(dtype)
    for name, module in stack.items():
        if where(name):
            put(module, device)
        else:
            stream(module, device)
    before = {
        name: {key: numbers(p).clone() for key, p in module._parameters.items() if p is not None}
        for name, module in stack.items()
    }
    known = {name: {key: bits(t) for key, t in tensors.items()} for name, tensors in before.items()}
    live, asked = device.live, torch.device(device.device.type)
    pair = make_pair(
        make_file("subject", 104, [n for n in NAMES if n != STYLE_ONLY]),
        make_file("style", 210, [n for n in NAMES if n != CONTENT_ONLY]),
    )
    plan = make_plan(pair, score_units(pair.units, "auto", asked), Settings(), STEPS)
    placed, missing = place_units(plan, pair, make_sites(stack), WEIGHTS, "tiny")
    assert not missing
    with plain_tensors():
        session = Session(plan, placed, engine, asked, reserve)
    return Job(device, Prepared(stack, pair, plan, session), before, known, live)


def whole_job(
    device: Device, engine: str, dtype: torch.dtype = torch.float32, where: Where = everywhere, reserve: int = 0,
    activations: int = 0,
) -> Job:  # fmt: skip
    """All steps, the model given back once in the middle.  activations: bytes that every forward of the model needs."""
    job = open_job(device, engine, dtype, where, reserve)
    merged = engine == "merge"
    for t in range(STEPS):
        job.step(t)
        torch.empty(activations, dtype=torch.uint8, device=device.device)
        job.check(t, merged)
        if t == STEPS // 2:
            with job.run.session.aside():
                job.check_untouched()
            job.check(t, merged)
    job.run.session.close()
    job.check_closed()
    return job
