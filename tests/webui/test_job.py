"""Theorems of whole jobs: on, every step is the plan's; however a job ends, the model is what it was."""

from __future__ import annotations

import copy

import pytest
import torch

from ..fakes.host import REFINER, FakeHost
from ..fakes.processing import process_images
from .jobs import close, expected, interrupt_at, job, plain, plan_of, untouched, watch, weights

# --- off ---


@pytest.mark.parametrize("settings", [{}, {"enabled": False, "content": "subject", "style": "style", "alpha": 3}])
def test_off_touches_nothing(host: FakeHost, settings: dict) -> None:
    script, host.script = host.script, None
    alone = plain(host, prompt="a cat <lora:subject_full:0.7>")
    without = process_images(alone)
    host.script = script
    p = plain(host, prompt="a cat <lora:subject_full:0.7>")
    p.script_args = (settings,)
    with_us = process_images(p)
    assert vars(p).keys() == vars(alone).keys()
    assert p.extra_generation_params == alone.extra_generation_params and p.comments == {}
    assert torch.equal(with_us.images[0], without.images[0])
    assert host.swallowed == [] and host.app.sampling_jobs == [] and host.app.enabled_p is None
    assert all("launch_sampling" not in vars(sampler) for sampler in host.samplers)


# --- on ---


@pytest.mark.parametrize("pair", [("subject", "style"), ("subject_full", "style_full")])
def test_every_step_is_the_plans(host: FakeHost, pair: tuple[str, str]) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, {"content": pair[0], "style": pair[1]}, steps=8)
    process_images(p)
    plan = plan_of(host, p, 8)
    assert len({tuple(row) for row in plan.table(8).T.tolist()}) > 2, "the plan switches"
    assert len(seen) == 8
    for t, got in enumerate(seen):
        assert close(got, expected(host, before, plan, t / 8)), t
    assert untouched(host, before) and host.swallowed == []


def test_bypass_draws_what_merge_draws(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    full = {"content": "subject_full", "style": "style_full"}
    merged = process_images(job(host, full | {"engine": "merge"})).images[0]
    written = len(seen)
    bypassed = process_images(job(host, full | {"engine": "bypass"})).images[0]
    assert torch.allclose(merged, bypassed, atol=1e-4)
    assert not torch.allclose(merged, process_images(plain(host)).images[0], atol=1e-2)
    assert not close(seen[0], before) and all(close(w, before) for w in seen[written:])
    assert untouched(host, before)


def test_the_users_weights_act_and_do_not_choose(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, {"content_weight": 0.5, "style_weight": -2})
    process_images(p)
    for t, got in enumerate(seen):
        assert close(got, expected(host, before, plan_of(host, p, 6), t / 6, (0.5, -2.0)))


def test_a_second_order_sampler_moves_by_calls(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, sampler_name="Heun")
    process_images(p)
    assert len(seen) == 11
    for t, got in enumerate(seen):
        assert close(got, expected(host, before, plan_of(host, p, 6), t / 12)), t


def test_calls_beyond_the_plan_count_as_the_last(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, sampler_name="UniPC")
    process_images(p)
    assert len(seen) == 7
    assert close(seen[6], seen[5]) and close(seen[6], expected(host, before, plan_of(host, p, 6), 5 / 6))
    assert untouched(host, before)


def test_an_adaptive_sampler_goes_by_noise(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, {"method": "fixed"}, sampler_name="DPM adaptive")
    process_images(p)
    plan = plan_of(host, p, 6)
    assert close(seen[0], expected(host, before, plan, 0.0)) and close(seen[-1], expected(host, before, plan, 0.999))
    assert len(seen) == 17 and untouched(host, before)


def test_img2img_begins_where_its_noise_begins(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, source=torch.ones(1, 4, 4, 4), steps=8, denoising_strength=0.5)
    process_images(p)
    assert len(seen) == 5
    for t, got in enumerate(seen):
        assert close(got, expected(host, before, plan_of(host, p, 10), 0.5 + 0.5 * t / 5)), t
    assert untouched(host, before)


def test_hires_is_two_passes(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, enable_hr=True, denoising_strength=0.5, hr_second_pass_steps=4)
    process_images(p)
    assert len(seen) == 10
    for t in range(6):
        assert close(seen[t], expected(host, before, plan_of(host, p, 6), t / 6)), t
    for t in range(4):
        assert close(seen[6 + t], expected(host, before, plan_of(host, p, 8), 0.5 + 0.5 * t / 4)), t
    assert untouched(host, before) and host.swallowed == []


def test_the_hires_prompt_has_tags_of_its_own(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, enable_hr=True, prompt="a cat <lora:style:0:0.5>", hr_prompt="a cat <lora:style:0:2>")
    process_images(p)
    assert close(seen[5], expected(host, before, plan_of(host, p, 6), 5 / 6, (1.0, 0.5)))
    assert close(seen[11], expected(host, before, plan_of(host, p, 12), 11 / 12, (1.0, 2.0)))
    assert untouched(host, before)


@pytest.mark.parametrize("fields", [{}, {"source": torch.ones(1, 4, 4, 4)}], ids=["txt2img", "img2img"])
def test_every_batch_is_a_pass(host: FakeHost, fields: dict) -> None:
    before, opened = weights(host), []
    p = job(host, {"method": "random"}, n_iter=3, **fields)
    host.on_call.append(lambda d: opened.append(p.klora_job.current) if p.klora_job.current not in opened else None)
    seen = watch(host)
    process_images(p)
    assert len(opened) == 3 and p.klora_job.passes == opened
    each = len(seen) // 3
    start, whole = (0.5, 8) if fields else (0.0, 6)
    for n in range(3):
        plan = plan_of(host, p, whole, p.seed + n)
        for t in range(each):
            assert close(seen[n * each + t], expected(host, before, plan, start + (1 - start) * t / each)), (n, t)
    assert untouched(host, before)


# --- together with the host's own LoRAs ---


def test_another_lora_in_the_prompt_stays(host: FakeHost) -> None:
    host.script, script = None, host.script
    process_images(plain(host, prompt="a cat <lora:conv_only:0.8>"))
    host.script = script
    base, seen = weights(host), watch(host)
    p = job(host, prompt="a cat <lora:conv_only:0.8>")
    process_images(p)
    for t, got in enumerate(seen):
        assert close(got, expected(host, base, plan_of(host, p, 6), t / 6)), t
    process_images(plain(host))
    fresh = host.load(host.sd_model.sd_checkpoint_info).model.diffusion_model.state_dict()
    assert untouched(host, fresh), "and a plain image after it is the base model's"


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_after_a_plain_job_with_the_pair_itself(host: FakeHost, functional: bool, engine: str) -> None:
    """The host leaves its merge in the weights; at our first call they are still the previous job's."""
    host.shared.opts.lora_functional = functional
    base = weights(host)
    process_images(plain(host, prompt="a cat <lora:subject:1>"))
    p = job(host, {"engine": engine}, prompt="a cat <lora:subject:0.3:0.6>")
    seen = watch(host)
    process_images(p)
    if engine == "merge":
        for t, got in enumerate(seen):
            assert close(got, expected(host, base, plan_of(host, p, 6), t / 6, (0.6, 1.0))), t
    assert untouched(host, base)
    assert torch.equal(process_images(plain(host)).images[0], process_images(plain(host)).images[0])
    assert untouched(host, base)


def test_text_parts_are_the_hosts_and_follow_the_weights(host: FakeHost) -> None:
    full = {"content": "subject_full", "style": "style_full"}
    p = job(host, full | {"content_weight": 0.4, "style_te_weight": 0.0})
    process_images(p)
    ours = p.c
    process_images(plain(host, prompt="a cat <lora:subject_full:0.4:0> <lora:style_full:0:0>".replace(" <", "<")))
    q = host.cond_cache[1]
    assert torch.allclose(ours, q, atol=1e-6)


def test_a_change_of_weight_is_a_new_prompt_for_the_cache(host: FakeHost) -> None:
    full = {"content": "subject_full", "style": "style_full"}
    calls = []
    for settings in (full, full, full | {"content_te_weight": 0.5}, full | {"style_te_weight": 0.5}, full):
        process_images(job(host, settings))
        calls.append(host.text_calls)
    assert calls == [1, 1, 2, 3, 4]
    process_images(plain(host))
    assert host.text_calls == 5


# --- the ways a job ends ---


def test_an_interrupt_restores(host: FakeHost) -> None:
    before = weights(host)
    interrupt_at(host, 2)
    processed = process_images(job(host))
    assert len(processed.images) == 1 and untouched(host, before)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_an_exception_of_the_model_restores_and_is_heard(host: FakeHost, engine: str) -> None:
    before = weights(host)

    def fail(denoiser: object) -> None:
        raise MemoryError("CUDA out of memory")

    host.on_call.append(fail)
    with pytest.raises(MemoryError, match="out of memory"):
        process_images(job(host, {"engine": engine}))
    assert untouched(host, before)


def test_what_fails_inside_a_swallowed_callback_ends_the_job(host: FakeHost) -> None:
    before, p = weights(host), job(host)
    calls = watch(host)

    def fail(denoiser: object) -> None:
        if len(calls) == 2:
            p.klora_job.current.session.choose_masks = lambda progress: 1 / 0

    host.on_call.append(fail)
    with pytest.raises(ZeroDivisionError):
        process_images(p)
    assert len(calls) == 2, "not one step more"
    assert untouched(host, before)


def test_what_fails_while_networks_load_ends_the_job(host: FakeHost) -> None:
    before, calls = weights(host), watch(host)
    with pytest.raises(Exception, match="dynamic rank"):
        process_images(job(host, prompt="a cat <lora:subject:1:1:4>"))
    assert calls == []
    process_images(plain(host))  # Forge has by then merged what the tag says
    assert untouched(host, before)


def test_words_of_a_tag_that_do_not_act_are_named(host: FakeHost) -> None:
    told = "the tag <lora:subject:1:lbw=INALL:stop=3> has lbw, stop, which does not act on a LoRA of the pair"
    with pytest.raises(Exception, match=told):
        process_images(job(host, prompt="a cat <lora:subject:1:lbw=INALL:stop=3>"))


def test_a_copy_of_p_is_a_job_of_its_own(host: FakeHost) -> None:
    """XYZ plots and other extensions copy p, our attributes with it."""
    before = weights(host)
    p = job(host)
    process_images(p)
    off = copy.copy(p)
    off.script_args = ({"enabled": False},)
    image = process_images(off).images[0]
    assert torch.equal(image, process_images(plain(host)).images[0])
    assert p.klora_job is not None and not hasattr(off, "klora_job")
    assert untouched(host, before)


def test_the_refiner_gets_its_own_weights(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = job(host, refiner_checkpoint_info=REFINER, refiner_switch_at=0.5)
    reload = getattr(host.sd_models, host.reload)
    process_images(p)
    refiner = host.load(REFINER).model.diffusion_model.state_dict()
    for t in range(3):
        assert close(seen[t], expected(host, before, plan_of(host, p, 6), t / 6)), t
    assert all(close(got, refiner) for got in seen[3:]) and len(seen) == 6
    assert untouched(host, refiner) and getattr(host.sd_models, host.reload) == reload
    assert p.extra_generation_params["K-LoRA until"] == "step 3 of 6 (refiner)"
    assert any("stepped aside" in text for text in p.comments)
    process_images(plain(host))
    assert untouched(host, before)
