"""Theorems of a pass: it is ours from the first denoiser call to the last, or the job ends with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..fakes.host import FakeHost
from ..fakes.processing import Processing, process_images
from ..fakes.samplers import Sampler
from .acts import at, ended
from .jobs import interrupt_at, job, plain, untouched, watch, weights

# --- the postcondition ---


def test_a_pass_that_nobody_advanced_is_no_image(host: FakeHost) -> None:
    before = weights(host)
    host.script_callbacks.registered["cfg_denoiser"].clear()
    assert ended(job(host)) == (
        "K-LoRA: the sampler ended after 6 denoiser calls, and K-LoRA was told of none; is another extension sampling in "
        "this WebUI's place?"
    )
    assert untouched(host, before)


def test_a_pass_that_was_advanced_in_part_is_no_image(host: FakeHost) -> None:
    before = weights(host)
    at(host, 3, host.script_callbacks.registered["cfg_denoiser"].clear)
    assert ended(job(host)) == "K-LoRA: the sampler made 6 denoiser calls, and K-LoRA was told of 4 of them"
    assert untouched(host, before)


def test_a_pass_that_somebody_else_closed_is_no_image(host: FakeHost) -> None:
    before, p = weights(host), job(host)
    at(host, 2, lambda: p.klora_job.close())
    assert ended(p) == "K-LoRA: the sampler draws without having told K-LoRA that it begins"
    assert untouched(host, before)


def test_a_pass_closed_after_its_last_call_is_no_image(host: FakeHost) -> None:
    """The last call itself may have been drawn without us, and nobody can tell."""
    before, p = weights(host), job(host)
    at(host, 5, lambda: p.klora_job.close())
    assert ended(p) == "K-LoRA: the pair was taken out of the model before the sampling pass ended"
    assert untouched(host, before)


def test_a_weight_that_somebody_else_wrote_is_no_image(a1111: FakeHost) -> None:
    """Forge's weights are made in inference mode, where torch keeps no count of writes; it has its own way of writing."""
    p = job(a1111)
    layer = a1111.unet.middle_block[1].transformer_blocks[0].attn1.to_q
    at(a1111, 3, lambda: layer.weight.mul_(1))
    assert "something else rewrote 1 layer of those that carried the pair, mid_block" in ended(p)


def test_a_hook_that_somebody_else_took_away_is_no_image(host: FakeHost) -> None:
    before, p = weights(host), job(host, {"engine": "bypass"})
    layer = host.unet.middle_block[1].transformer_blocks[0].attn1.to_q
    at(host, 3, layer._forward_hooks.clear)
    assert "something else rewrote 1 layer of those that carried the pair, mid_block" in ended(p)
    assert untouched(host, before)


def test_an_interrupt_before_the_first_call_is_no_fault(host: FakeHost) -> None:
    before = weights(host)
    original = host.create_sampler

    def create(name: str) -> Sampler:
        host.shared.state.interrupted = True
        return original(name)

    host.create_sampler = create  # type: ignore[method-assign]
    assert len(process_images(job(host)).images) == 1 and untouched(host, before)


def test_a_skip_in_the_middle_is_no_fault(host: FakeHost) -> None:
    interrupt_at(host, 3)
    assert len(process_images(job(host)).images) == 1


# --- another script samples ---


def sample_alone(p: Processing) -> Callable[[], Any]:
    """What replaces ``p.sample`` and never asks the scripts."""

    def sample() -> Any:
        p.sampler = p.host.create_sampler(p.sampler_name)
        return p.sampler.sample(p, p.noise(), p.c)

    return sample


def test_a_script_that_samples_alone_ends_the_job(host: FakeHost) -> None:
    before, calls, p = weights(host), watch(host), job(host)
    p.sample = sample_alone(p)  # type: ignore[method-assign]
    assert ended(p) == "K-LoRA: the sampler draws without having told K-LoRA that it begins"
    assert calls == [] and untouched(host, before)


def test_a_script_that_is_known_to_sample_alone_is_refused_before(host: FakeHost) -> None:
    p = job(host)
    p.sample = sample_alone(p)  # type: ignore[method-assign]
    p.sample.__module__ = "scripts.img2imgalt"
    assert ended(p) == (
        "K-LoRA: the script 'img2img alternative test' samples by itself, where K-LoRA cannot act; choose one of them"
    )
    assert host.samplers == [] and not hasattr(p, "klora_job")


def test_a_script_that_samples_without_a_denoiser_ends_the_job(host: FakeHost) -> None:
    p = job(host)
    p.sample = p.noise  # type: ignore[method-assign]
    assert ended(p) == "K-LoRA: another script sampled in the WebUI's place, and without K-LoRA"


def test_a_script_that_wraps_the_sampling_is_a_neighbour(host: FakeHost) -> None:
    """ControlNet puts a function of its own in that place, which goes on to the class's."""
    wanted = process_images(job(host)).images[0]
    p = job(host)
    original = p.sample
    p.sample = lambda: original()  # type: ignore[method-assign]
    assert torch.equal(process_images(p).images[0], wanted)


def test_a_script_may_run_its_p_again_and_again(host: FakeHost) -> None:
    """Loops do; the second job, on or off, has nothing of the first one's."""
    wanted, off = process_images(job(host)).images[0], process_images(plain(host)).images[0]
    p = job(host)
    original = p.sample
    p.sample = theirs = lambda: original()  # type: ignore[method-assign]
    for _ in range(2):
        assert torch.equal(process_images(p).images[0], wanted)
    p.script_args = ({},)
    assert torch.equal(process_images(p).images[0], off) and p.sample is theirs


def test_a_script_that_samples_alone_after_us_makes_no_claim(host: FakeHost) -> None:
    """Put there when our hook has been asked already: nobody can raise, but the infotext says nothing of K-LoRA."""
    p = job(host)
    init = p.init

    def later(*args: Any) -> None:
        p.sample = sample_alone(p)  # type: ignore[method-assign]
        init(*args)

    p.init = later  # type: ignore[method-assign]
    processed = process_images(p)
    assert not any("K-LoRA" in text for text in processed.infotexts)
    assert list(p.comments) == ["K-LoRA: the sampler draws without having told K-LoRA that it begins"]
