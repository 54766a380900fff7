"""OFT in a WebUI: the choice is by what it would change of the weights that the pass finds, whatever they were before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora_lib.engine.fit import make_weight_reader
from klora_lib.engine.layers import list_sites
from klora_lib.rule.cache import Library
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import read_settings

from ..fakes.a1111 import FakeA1111
from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, installed
from ..fakes.loras import all_layers
from ..fakes.processing import Processing, process_images
from ..fakes.unet import UNet
from .jobs import CPU, job, plain, untouched, watch, weights

PAIR = {"content": "turner", "style": "style", "beta": 0.2}


@pytest.fixture
def folder(loras: Path, tmp_path: Path) -> Path:
    """The fake hosts' LoRAs, and one that turns every layer."""
    shutil.copytree(loras, tmp_path / "loras")
    net, tensors = UNet(), {}
    for name in all_layers(net):
        rows = net.get_submodule(name).weight.shape[0]  # type: ignore[union-attr]
        g = torch.Generator().manual_seed(rows + len(name))
        tensors[f"oft_unet_{name.replace('.', '_')}.oft_blocks"] = torch.randn(1, rows, rows, generator=g) * 0.05
    save_file(tensors, tmp_path / "loras" / "turner.safetensors")
    return tmp_path / "loras"


@pytest.fixture(params=[FakeA1111, FakeForge])
def start(request: pytest.FixtureRequest, folder: Path) -> Iterator[Callable[[], FakeHost]]:
    opened = []

    def begin() -> FakeHost:
        while opened:
            opened.pop().__exit__(None, None, None)
        opened.append(installed(request.param, folder))
        host = opened[-1].__enter__()
        host.load_script()
        return host

    yield begin
    while opened:
        opened.pop().__exit__(None, None, None)


def plan_now(host: FakeHost, p: Processing, steps: int) -> Plan:
    settings, library = read_settings(p.script_args[0]), Library()
    files = [library.read(host.networks.available_networks[n].filename, n) for n in (settings.content, settings.style)]
    pair, sites = library.pair(*files), list_sites(host.unet)
    return make_plan(pair, library.score(pair, settings.k, CPU, weights=make_weight_reader(sites)), settings, steps, p.seed)


def test_every_step_is_the_plans(start: Callable[[], FakeHost]) -> None:
    host = start()
    before, seen = weights(host), watch(host)
    p = job(host, PAIR, steps=8)
    plan, sites = plan_now(host, p, 8), list_sites(host.unet)
    process_images(p)
    table = plan.table(8)
    assert {1, 2} <= set(table.flatten().tolist()) and len({tuple(row) for row in table.T.tolist()}) > 2
    modules = {id(m): path for path, m in host.unet.named_modules()}
    for t, got in enumerate(seen):
        for unit, mask in zip(plan.units, table[:, t].tolist()):
            name = f"{modules[id(sites[unit.name].module)]}.weight"
            base = before[name].flatten(1)
            change = sum(d.update(base) for bit, d in ((1, unit.content), (2, unit.style)) if d is not None and mask & bit)
            assert torch.allclose(got[name].flatten(1), base + change, atol=1e-5), (t, name)
    assert untouched(host, before) and host.swallowed == []


def test_what_a_job_before_left_in_the_weights_has_no_part(start: Callable[[], FakeHost]) -> None:
    """AUTOMATIC1111's layers carry the last prompt's LoRAs until the first forward of the next job."""
    fresh = process_images(job(start(), PAIR)).images[0]
    host = start()
    process_images(plain(host, prompt="a cat <lora:subject_full:3>"))
    p = job(host, PAIR)
    assert torch.equal(process_images(p).images[0], fresh)
    gamma = p.klora_job.passes[0].plan.gamma
    host = start()
    p = job(host, PAIR)
    process_images(p)
    assert p.klora_job.passes[0].plan.gamma == gamma


def test_engines_draw_the_same(start: Callable[[], FakeHost]) -> None:
    host = start()
    merged, bypassed = (process_images(job(host, PAIR | {"engine": e})).images[0] for e in ("merge", "bypass"))
    assert torch.allclose(merged, bypassed, atol=1e-4)
    assert not torch.allclose(merged, process_images(plain(host)).images[0], atol=1e-2)
