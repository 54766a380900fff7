"""Jobs on the fake host, and what their weights should have been."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from klora_lib.engine.layers import list_sites
from klora_lib.rule.cache import Library
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import read_settings

from ..fakes.host import FakeHost
from ..fakes.processing import Processing
from ..fakes.samplers import Denoiser

CPU = torch.device("cpu")


def job(host: FakeHost, settings: dict[str, Any] | None = None, **fields: Any) -> Processing:
    """An enabled job with the attention pair, unless ``settings`` say otherwise."""
    chosen = {"enabled": True, "content": "subject", "style": "style", **(settings or {})}
    return Processing(host, script_args=(chosen,), **fields)


def plain(host: FakeHost, **fields: Any) -> Processing:
    return Processing(host, script_args=({},), **fields)


def weights(host: FakeHost) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in host.unet.state_dict().items()}


def bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: t.contiguous().view(torch.int32).flatten().tolist() for name, t in tensors.items()}


def untouched(host: FakeHost, before: dict[str, Tensor]) -> bool:
    """Every parameter bit for bit, no hook, no open session."""
    hooks = sum(len(m._forward_hooks) for m in host.unet.modules())
    return bits(weights(host)) == bits(before) and hooks == 0


def watch(host: FakeHost) -> list[dict[str, Tensor]]:
    """The UNet's weights right after each of its calls."""
    seen: list[dict[str, Tensor]] = []
    host.on_call.append(lambda denoiser: seen.append(weights(host)))
    return seen


def plan_of(host: FakeHost, p: Processing, steps: int, seed: int | None = None) -> Plan:
    """The plan that the job's settings make, found without the job."""
    settings = read_settings(p.script_args[0])
    library = Library()
    files = [library.read(host.networks.available_networks[n].filename, n) for n in (settings.content, settings.style)]
    pair = library.pair(*files)
    return make_plan(pair, library.score(pair, settings.k, CPU), settings, steps, p.seed if seed is None else seed)


def expected(
    host: FakeHost, base: dict[str, Tensor], plan: Plan, progress: float, users: tuple[float, float] = (1.0, 1.0)
) -> dict[str, Tensor]:
    """W0 + w·ΔW of what the plan chooses at ``progress``, in fp64, under the UNet's own names."""
    modules = {id(m): path for path, m in host.unet.named_modules()}
    want = {name: t.double() for name, t in base.items()}
    sites = list_sites(host.unet)
    for unit, mask in zip(plan.units, plan.at(progress).tolist()):
        name = f"{modules[id(sites[unit.name].module)]}.weight"
        for bit, delta, w in zip((1, 2), (unit.content, unit.style), users):
            if delta is not None and mask & bit:
                want[name] = want[name] + w * delta.dense().double().reshape(want[name].shape)
    return want


def close(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return all(torch.allclose(got[name].double(), want[name].double(), atol=1e-6) for name in want)


def interrupt_at(host: FakeHost, step: int) -> None:
    def look(denoiser: Denoiser) -> None:
        if denoiser.step == step:
            host.shared.state.interrupted = True

    host.on_call.append(look)
