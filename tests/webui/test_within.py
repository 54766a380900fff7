"""Theorems of what others do within a pass — jobs, merges, unloading: it finds the model as it expects it, and our choice
acts again afterwards; or the job ends."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
import torch

from ..fakes.a1111 import FakeA1111
from ..fakes.host import REFINER, FakeHost
from ..fakes.processing import Processed, Processing, process_images
from .acts import at, ended, in_another_thread
from .jobs import close, expected, job, plain, plan_of, untouched, watch, weights

# --- a job within a job ---


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_a_job_within_the_pass_is_its_authors_and_ours_goes_on(host: FakeHost, engine: str) -> None:
    alone = process_images(plain(host, prompt="a dog", seed=5)).images[0]
    wanted = process_images(job(host, {"engine": engine}))
    before, inner = weights(host), []
    at(host, 2, lambda: inner.append(process_images(plain(host, prompt="a dog", seed=5)).images[0]))
    p = job(host, {"engine": engine})
    p.c = None
    got = process_images(p)
    assert torch.equal(inner[0], alone)
    assert torch.equal(got.images[0], wanted.images[0])
    assert untouched(host, before) and host.swallowed == []


def test_a_klora_job_within_the_pass_has_its_own_pair(host: FakeHost) -> None:
    other = {"content": "style", "style": "subject"}
    alone, wanted = process_images(job(host, other, seed=5)).images[0], process_images(job(host)).images[0]
    before, inner = weights(host), []
    at(host, 2, lambda: inner.append(process_images(job(host, other, seed=5)).images[0]))
    assert torch.equal(process_images(job(host)).images[0], wanted) and torch.equal(inner[0], alone)
    assert untouched(host, before)


def test_our_choice_acts_again_after_a_job_that_failed_within_the_pass(host: FakeHost) -> None:
    wanted = process_images(job(host)).images[0]
    before, p = weights(host), job(host)

    def act() -> None:
        broken = plain(host)
        broken.sample = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        shown = weights(host)
        with pytest.raises(ZeroDivisionError):
            process_images(broken)
        assert close(weights(host), shown) and not close(shown, before)

    at(host, 2, act)
    assert torch.equal(process_images(p).images[0], wanted) and untouched(host, before)


def test_a_job_within_the_pass_that_leaves_another_checkpoint_ends_ours(host: FakeHost) -> None:
    base = weights(host)

    def act() -> None:
        process_images(plain(host, refiner_checkpoint_info=REFINER, refiner_switch_at=0.5))

    at(host, 2, act)
    assert ended(job(host)) == "K-LoRA: a job within this one loaded 'tiny-refiner' in the place of 'tiny'"
    refiner = host.load(REFINER).model.diffusion_model.state_dict()
    assert untouched(host, refiner)
    host.on_call.clear()
    process_images(plain(host))
    assert untouched(host, base)


def test_another_threads_job_ends_ours(host: FakeHost) -> None:
    alone = process_images(plain(host, seed=5)).images[0]
    before, inner = weights(host), []
    at(host, 2, in_another_thread(lambda: inner.append(process_images(plain(host, seed=5)).images[0])))
    assert ended(job(host)) == "K-LoRA: another job began on the same model while this one was sampling"
    assert torch.equal(inner[0], alone) and untouched(host, before)


def test_reloading_the_ui_within_the_pass_ends_the_job(host: FakeHost) -> None:
    """In the middle of it the hooks of the old script go, and the weights are given back at once."""
    before, registered = weights(host), host.script_callbacks.registered
    seen: list[bool] = []

    def reload() -> None:
        unloaded = list(registered["script_unloaded"])
        for found in registered.values():
            found.clear()
        for callback in unloaded:
            callback()
        host.load_script()
        seen.append(untouched(host, before))

    at(host, 2, in_another_thread(reload))
    assert ended(job(host)) == "K-LoRA: the WebUI was reloaded while this job was sampling"
    assert seen == [True] and untouched(host, before)
    host.on_call.clear()
    assert len(process_images(job(host)).images) == 1


def test_a_pass_of_another_extension_is_told(host: FakeHost) -> None:
    """ADetailer draws with a p and scripts of its own before the image's infotext is written."""
    p = job(host)
    end = Processing.sample

    def sample_and_detail() -> Any:
        samples = end(p)
        inner = Processing(host, seed=8)
        inner._ad_inner = True  # type: ignore[attr-defined]
        script, host.script = host.script, None
        process_images(inner)
        host.script = script
        return samples

    p.sample = sample_and_detail  # type: ignore[method-assign]
    infotext = process_images(p).infotexts[0]
    assert "K-LoRA not in: ADetailer's pass" in infotext and "K-LoRA content: subject" in infotext
    assert "K-LoRA not in" not in process_images(job(host)).infotexts[0]


# --- the host writes weights within the pass (A1111) ---


def other(host: FakeHost, weight: float) -> None:
    """What lora-block-weight and loractl do: another multiplier for a loaded network."""
    for network in host.networks.loaded_networks:
        if network.name == "conv_only":
            network.unet_multiplier = weight


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_another_loras_weight_may_change_within_the_pass(a1111: FakeA1111, engine: str) -> None:
    """The host merges a layer anew at its next forward: over its own backup, not over what we have written."""
    process_images(plain(a1111))
    fresh = weights(a1111)
    bases = []
    for weight in (0.8, 0.3):
        process_images(plain(a1111, prompt=f"a cat <lora:conv_only:{weight}>"))
        bases.append(weights(a1111))
    process_images(plain(a1111))
    assert untouched(a1111, fresh) and not close(bases[0], bases[1])
    seen = watch(a1111)
    at(a1111, 2, lambda: other(a1111, 0.3))
    p = job(a1111, {"content": "subject_full", "style": "style_full", "engine": engine}, prompt="a cat <lora:conv_only:0.8>")
    process_images(p)
    plan = plan_of(a1111, p, 6)
    for t, got in enumerate(seen):
        base = bases[0] if t < 3 else bases[1]
        assert close(got, expected(a1111, base, plan, t / 6) if engine == "merge" else base), t
    a1111.on_call.clear()
    process_images(plain(a1111))
    assert untouched(a1111, fresh), "and the next plain image is the base model's"


def test_networks_may_be_activated_within_a_pass_that_began_with_none(a1111: FakeA1111) -> None:
    """The host's first backup of a layer is then taken in the middle of our pass."""
    process_images(plain(a1111))
    fresh = weights(a1111)
    at(a1111, 2, lambda: a1111.networks.load_networks(["conv_only"], [0.0], [0.8], [None]))
    wanted = process_images(job(a1111))
    assert len(wanted.images) == 1
    a1111.on_call.clear()
    process_images(plain(a1111))
    assert untouched(a1111, fresh)


# --- unloading ---


def test_unloading_the_checkpoint_from_another_request_ends_the_job(a1111: FakeA1111) -> None:
    before = weights(a1111)
    at(a1111, 2, in_another_thread(lambda: a1111.sd_models.unload_model_weights()))
    assert ended(job(a1111)) == (
        "K-LoRA: another request unloaded or replaced the checkpoint while this job was sampling"
    )
    assert untouched(a1111, before)


def test_another_models_unloading_is_none_of_our_business(a1111: FakeA1111) -> None:
    at(a1111, 2, in_another_thread(lambda: a1111.sd_models.unload_model_weights(object())))
    assert len(process_images(job(a1111)).images) == 1


def test_everything_we_put_in_a_hosts_place_is_gone_afterwards(host: FakeHost) -> None:
    places = [host.networks, host.sd_models, host.processing]
    before = [dict(vars(place)) for place in places]
    process_images(job(host))
    assert [dict(vars(place)) for place in places] == before


def test_who_wraps_a_function_within_our_pass_keeps_it(host: FakeHost) -> None:
    """Removable in any order: an extension that wraps process_images_inner meanwhile is not thrown out with us."""
    calls: list[Any] = []

    def wrap() -> None:
        inner = host.processing.process_images_inner

        def theirs(p: Any) -> Any:
            calls.append(p)
            return inner(p)

        host.processing.process_images_inner = theirs

    at(host, 2, wrap)
    wanted = process_images(job(host)).images[0]
    assert calls == []
    host.on_call.clear()
    assert torch.equal(process_images(job(host)).images[0], wanted) and len(calls) == 1


def test_a_copy_of_the_job_tells_what_the_job_tells(host: FakeHost) -> None:
    """ADetailer's "skip img2img" has the image's text made from such a copy."""
    p = job(host)
    end, told = Processing.sample, {}

    def sample_and_copy() -> Any:
        samples = end(p)
        p.extra_generation_params["K-LoRA not in"] = "ADetailer's pass"
        copied = copy(p)
        host.hook("process", copied)
        told.update(copied.extra_generation_params)
        return samples

    p.sample = sample_and_copy  # type: ignore[method-assign]
    process_images(p)
    assert told["K-LoRA not in"] == "ADetailer's pass" and told["K-LoRA content"] == "subject"


def test_a_pass_of_another_extension_is_told_after_copies_of_the_job_began(host: FakeHost) -> None:
    """For every image ADetailer has the scripts end and begin with copies of p, also where it finds nothing to draw."""
    p = job(host, n_iter=2)
    end = Processing.sample

    def sample_and_detail() -> Any:
        samples = end(p)
        host.hook("postprocess", copy(p), Processed([], []))
        if p.seeds != [p.seed]:
            inner = Processing(host, seed=8)
            inner._ad_inner = True  # type: ignore[attr-defined]
            script, host.script = host.script, None
            process_images(inner)
            host.script = script
        host.hook("process", copy(p))
        return samples

    p.sample = sample_and_detail  # type: ignore[method-assign]
    first, second = process_images(p).infotexts
    assert "K-LoRA not in" not in first and "K-LoRA not in: ADetailer's pass" in second
