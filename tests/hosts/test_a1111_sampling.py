"""Theorems of one sampling pass on A1111: pending merges settled, the clock read right, every guard undone."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from klora_lib.engine.layers import list_sites
from klora_lib.engine.site import Site
from klora_lib.errors import HostError
from klora_lib.hosts import detect
from klora_lib.rule.schedule import compute_noise_progress

from ..fakes.a1111 import FakeA1111
from ..fakes.host import BASE, REFINER, InterruptedException
from ..fakes.processing import Processing, process_images
from ..fakes.samplers import SIGMAS, TIMESTEPS

TAG = "<lora:subject:0.5>"


def weights(host: FakeA1111) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in host.unet.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


# --- the model ---


def test_the_model_as_it_is_loaded(host: FakeA1111) -> None:
    adapter = detect()
    assert adapter.get_device() == torch.device("cpu") and adapter.get_checkpoint_name() == "tiny"
    assert adapter.find_sites() == list_sites(host.unet)
    host.reload_model_weights(info=REFINER)
    assert adapter.get_checkpoint_name() == "tiny-refiner"


def test_a_replaced_unet_is_named(host: FakeA1111) -> None:
    host.sd_unet.current_unet = types.SimpleNamespace(option=types.SimpleNamespace(label="TensorRT"))
    with pytest.raises(HostError, match="'TensorRT'; set it to None"):
        detect().find_sites()


# --- settling ---


def settle(host: FakeA1111) -> None:
    detect().finish_merging(site.module for site in detect().find_sites().values())


@pytest.mark.parametrize("after", ["", "<lora:conv_only:1>", TAG])
def test_settled_weights_are_what_the_next_forward_would_see(host: FakeA1111, after: str) -> None:
    """The previous job's merge is still in the weights when ours begins."""
    process_images(Processing(host, prompt=TAG))
    p = Processing(host, prompt=after)
    process_images(p)
    wanted = weights(host)
    process_images(Processing(host, prompt=TAG))
    p = Processing(host, prompt=after)
    names = [t for t in after.strip("<>").split(":")[1:2] if t]
    te = [float(after.strip("<>").split(":")[2])] if names else []
    host.networks.load_networks(names, te, te, [None] * len(te))
    settle(host)
    assert equal(weights(host), wanted)
    host.unet(torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 6))
    assert equal(weights(host), wanted), "and a forward after it writes nothing"


def test_what_is_settled_may_be_written_over(host: FakeA1111) -> None:
    """A forward after settling does not put the host's backup over our weights, whatever is loaded."""
    host.networks.load_networks(["subject"], [0.5], [0.5], [None])
    settle(host)
    layer = host.unet.middle_block[1].transformer_blocks[0].attn1.to_q
    layer.weight += 1
    ours = layer.weight.clone()
    host.unet(torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 6))
    assert torch.equal(layer.weight, ours)


@pytest.mark.parametrize("loaded", [[], ["conv_only"]])
def test_with_lora_functional_the_base_is_what_is_settled(host: FakeA1111, loaded: list[str]) -> None:
    """It adds networks to outputs, and undoes an earlier merge at every forward."""
    before = weights(host)
    process_images(Processing(host, prompt=TAG))
    assert not equal(weights(host), before)
    host.shared.opts.lora_functional = True
    host.networks.load_networks(loaded, [1.0] * len(loaded), [1.0] * len(loaded), [None] * len(loaded))
    settle(host)
    assert equal(weights(host), before)
    layer = host.unet.middle_block[1].transformer_blocks[0].attn1.to_q
    layer.weight += 1
    ours = weights(host)
    host.unet(torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 6))
    assert equal(weights(host), ours)


# --- around sampling ---


def pass_of(host: FakeA1111, name: str = "Euler", **fields: Any) -> Processing:
    p = Processing(host, sampler_name=name, **fields)
    p.seeds, p.sampler, p.c = [1], host.create_sampler(name), torch.zeros(1, 3, 6)
    return p


@contextmanager
def noted(log: list[Any], steps: int) -> Iterator[None]:
    log.append(steps)
    try:
        yield
    finally:
        log.append("closed")


def run(p: Processing) -> Any:
    return p.sampler.sample(p, p.noise(), p.c)


def test_the_pass_runs_inside_the_context(host: FakeA1111) -> None:
    log: list[Any] = []
    p = pass_of(host)
    detect().wrap_sampling(p, lambda steps: noted(log, steps))
    host.on_call.append(lambda denoiser: log.append("call"))
    assert run(p) is not None
    assert log == [6, *["call"] * 6, "closed"]


def test_a_sampler_used_for_several_batches_is_wrapped_once(host: FakeA1111) -> None:
    """img2img makes its sampler once for all of them."""
    log: list[Any] = []
    p = pass_of(host)
    for _ in range(3):
        detect().wrap_sampling(p, lambda steps: noted(log, steps))
        run(p)
    assert log == [6, "closed"] * 3


def test_what_the_context_raises_ends_the_pass(host: FakeA1111) -> None:
    @contextmanager
    def failing(steps: int) -> Iterator[None]:
        yield
        raise HostError("seen")

    p = pass_of(host)
    detect().wrap_sampling(p, failing)
    with pytest.raises(HostError, match="seen"):
        run(p)


def test_an_interrupted_pass_returns_what_it_has(host: FakeA1111) -> None:
    """The way in which a callback of ours stops a pass, too."""
    log: list[Any] = []
    p = pass_of(host)
    detect().wrap_sampling(p, lambda steps: noted(log, steps))
    stop = detect().make_stop()
    assert isinstance(stop, InterruptedException) and not isinstance(stop, Exception)

    def callback(params: Any) -> None:
        if params.denoiser.step == 3:
            raise stop

    host.script_callbacks.registered["cfg_denoiser"].append(callback)
    assert run(p) is p.sampler.last_latent
    assert log == [6, "closed"]


def test_a_sampler_of_another_make_is_refused(host: FakeA1111) -> None:
    p = Processing(host, sampler_name="Foreign", sampler=object())
    with pytest.raises(HostError, match="'Foreign'"):
        detect().wrap_sampling(p, lambda steps: noted([], steps))


# --- the model swap ---


def test_the_guard_acts_before_the_swap_and_is_undone(host: FakeA1111) -> None:
    seen: list[Any] = []
    p = pass_of(host, refiner_checkpoint_info=REFINER)
    original = host.sd_models.reload_model_weights
    with detect().watch_refiner(p, lambda: seen.append(detect().get_checkpoint_name())):
        assert host.sd_models.reload_model_weights(info=REFINER) is host.sd_model
        assert host.sd_models.reload_model_weights is not original
    assert seen == [BASE.name_for_extra] and detect().get_checkpoint_name() == REFINER.name_for_extra
    assert host.sd_models.reload_model_weights == original


def test_the_guard_is_undone_after_an_error(host: FakeA1111) -> None:
    p = pass_of(host, refiner_checkpoint_info=REFINER)
    original = host.sd_models.reload_model_weights
    with pytest.raises(ZeroDivisionError), detect().watch_refiner(p, lambda: None):
        _ = 1 / 0
    assert host.sd_models.reload_model_weights == original


def test_without_a_refiner_nothing_is_guarded(host: FakeA1111) -> None:
    original = host.sd_models.reload_model_weights
    with detect().watch_refiner(pass_of(host), lambda: None):
        assert host.sd_models.reload_model_weights == original


# --- the clock ---


@pytest.mark.parametrize(("strength", "start"), [(0.5, 0.5), (0.75, 0.25), (1.0, 0.0), (0.1, 0.9)])
def test_a_pass_from_an_image_begins_at_its_strength(host: FakeA1111, strength: float, start: float) -> None:
    p = pass_of(host, denoising_strength=strength)
    assert detect().find_start(p) == 0.0, "txt2img has a strength too, and no latent to begin from"
    p.sampler.model_wrap_cfg.init_latent = torch.zeros(1, 4, 4, 4)
    assert detect().find_start(p) == pytest.approx(start)


@pytest.mark.parametrize(
    ("name", "fixed"), [("Euler", True), ("Heun", True), ("DDIM", True), ("UniPC", True), ("DPM adaptive", False)]
)
def test_which_samplers_know_their_steps(host: FakeA1111, name: str, fixed: bool) -> None:
    assert detect().has_fixed_steps(pass_of(host, name)) is fixed


def calls_of(host: FakeA1111, name: str, **fields: Any) -> list[tuple[int, int, float, float]]:
    """(t, total, progress by noise, the sigma or timestep that was handed over) of every call of a pass."""
    found = []

    def callback(params: Any) -> None:
        call = detect().read_call(params)
        found.append((call.t, call.total, call.find_noise_progress(), float(params.sigma.max())))

    host.script_callbacks.registered["cfg_denoiser"].append(callback)
    run(pass_of(host, name, **fields))
    return found


@pytest.mark.parametrize(("name", "calls", "total"), [("Euler", 6, 6), ("Heun", 11, 12), ("DDIM", 6, 6), ("UniPC", 7, 6)])
def test_the_counter_is_the_denoisers_own(host: FakeA1111, name: str, calls: int, total: int) -> None:
    assert [c[:2] for c in calls_of(host, name)] == [(t, total) for t in range(calls)]


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM adaptive"])
def test_noise_progress_of_a_sigma(host: FakeA1111, name: str) -> None:
    """From the place of the sigma among the model's own."""
    found = calls_of(host, name)
    assert found[0][2] == pytest.approx(0.0, abs=1e-3) and found[-1][2] == pytest.approx(1.0, abs=1e-3)
    for _, _, progress, sigma in found:
        timestep = int((SIGMAS - sigma).abs().argmin())
        assert 0 <= progress < 1 and progress == pytest.approx(1 - timestep / (TIMESTEPS - 1), abs=1e-3)


@pytest.mark.parametrize("name", ["DDIM", "UniPC"])
def test_noise_progress_of_a_timestep(host: FakeA1111, name: str) -> None:
    """Some samplers hand over a timestep under the name of sigma."""
    for _, _, progress, timestep in calls_of(host, name):
        assert progress == compute_noise_progress(timestep, TIMESTEPS)


def test_sigma_and_timestep_samplers_agree_on_the_noise(host: FakeA1111) -> None:
    one = [c[2] for c in calls_of(host, "Euler")]
    host.script_callbacks.registered["cfg_denoiser"].clear()
    two = [c[2] for c in calls_of(host, "DDIM")]
    assert one == pytest.approx(two, abs=1e-3)


def test_a_site_is_a_module_of_the_running_model(host: FakeA1111) -> None:
    assert all(isinstance(s, Site) and s.module in set(host.unet.modules()) for s in detect().find_sites().values())
