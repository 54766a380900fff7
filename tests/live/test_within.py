"""What others do while a job is sampling finds the model as it expects it, and our choice acts again; or the job ends."""

from __future__ import annotations

import pytest

from .checks import FAR, assert_reference_at_work, same
from .host import Host, decode, difference, encode
from .jobs import HIRES, PLAIN, Pair, klora, plain, reference, tag
from .test_safety import ENGINES
from .witness import Witness

A1111 = pytest.mark.hosts("a1111")
INNER = {"prompt": "a dog", "steps": 2, "width": 64, "height": 64, "seed": 5, "cfg_scale": 5, "sampler_name": "Euler"}
# an ancestral sampler draws its noise through a module that every job's sampler writes to
OUTER = {"sampler_name": "Euler"}


def other_lora(host: Host) -> str:
    return host.sd15.attention.content


# --- another LoRA's multiplier ---


@A1111
@ENGINES
@pytest.mark.parametrize("passes", [1, 2])
def test_another_loras_multiplier_changes(host: Host, sd15_witness: Witness, engine: str, passes: int):
    """The WebUI restores and merges a layer at its next forward; the next plain image shows whether it got its own back."""
    fields = {"prompt": PLAIN["prompt"] + tag(other_lora(host), 0.8, 0.8), **(HIRES if passes == 2 else {})}
    pair, change = host.sd15.uneven, (other_lora(host), 0.3)
    whole = host.image(klora(pair, {"engine": engine}, **fields))
    host.arm_act(3, "multiplier", *change)
    expected = host.image(reference(host.lora, pair, **fields))
    assert_reference_at_work(host.reference(), passes)
    host.arm_act(3, "multiplier", *change)
    got = host.image(klora(pair, {"engine": engine}, **fields))
    assert difference(got, expected) <= 1
    assert difference(got, whole) > FAR
    sd15_witness.assert_unchanged()


@A1111
@ENGINES
def test_a_lora_comes_within_a_pass_that_began_with_none(host: Host, sd15_witness: Witness, engine: str):
    """The WebUI takes its first backup of a layer in the middle of our pass."""
    pair = Pair(host.sd15.attention.content, host.sd15.attention.style)  # without text encoder parts: nothing is loaded
    other = host.sd15.uneven.content
    host.arm_act(3, "activate", other, 0.4)
    expected = host.image(reference(host.lora, pair))
    host.arm_act(3, "activate", other, 0.4)
    got = host.image(klora(pair, {"engine": engine}))
    assert difference(got, expected) <= 1
    sd15_witness.assert_unchanged()


# --- a job within the job ---


@ENGINES
def test_a_job_within_the_job(host: Host, sd15_witness: Witness, engine: str):
    alone = host.image(plain(**INNER, negative_prompt=""))
    outer = klora(host.sd15.uneven, {"engine": engine}, **OUTER)
    whole = host.image(outer)
    host.arm_act(3, "job", INNER)
    assert same(host.image(outer), whole)
    assert same(decode(host.last_job()["said"]), alone)
    sd15_witness.assert_unchanged()


def test_a_job_of_another_thread_ends_ours(host: Host, sd15_witness: Witness):
    alone = host.image(plain(**INNER, negative_prompt=""))
    host.arm_act(3, "job_in_a_thread", INNER)
    answer = host.ask("/sdapi/v1/txt2img", klora(host.sd15.uneven, **OUTER))
    assert answer.status == 422, answer.text
    assert "another job began on the same model while this one was sampling" in answer.text
    assert same(decode(host.last_job()["said"]), alone)
    sd15_witness.assert_unchanged()


# --- unloading takes no queue lock ---


@ENGINES
def test_unloading_the_checkpoint_ends_the_job(host: Host, sd15_witness: Witness, engine: str):
    host.arm_act(3, "request", "/sdapi/v1/unload-checkpoint")
    answer = host.ask("/sdapi/v1/txt2img", klora(host.sd15.uneven, {"engine": engine}))
    assert answer.status == 422, answer.text
    assert "another request unloaded or replaced the checkpoint while this job was sampling" in answer.text
    assert host.last_job()["said"] == 200 and host.last_job()["calls"] == 3
    host.must("/sdapi/v1/reload-checkpoint", {})
    sd15_witness.assert_unchanged()


# --- a script that samples by itself ---


@A1111
def test_img2img_alternative_test_is_refused(host: Host, sd15_witness: Witness):
    start = encode(host.known_image(plain(seed=5)))
    arguments = [None, True, True, PLAIN["prompt"], "", True, 4, True, 1.0, 0.0, False]
    fields = {"init_images": [start], "script_name": "img2img alternative test", "script_args": arguments}
    assert host.ask("/sdapi/v1/img2img", plain(**fields)).status == 200
    answer = host.ask("/sdapi/v1/img2img", klora(host.sd15.uneven, **fields))
    assert answer.status == 422 and "'img2img alternative test' samples by itself" in answer.text
    sd15_witness.assert_unchanged()


@pytest.mark.parametrize("weight", ["nan", "inf", "1e30", "1000", "1:nan", "1:stop=3"])
def test_a_tag_with_an_impossible_weight_is_refused(host: Host, sd15_witness: Witness, weight: str):
    job = klora(host.sd15.uneven, prompt=f"{PLAIN['prompt']} <lora:{host.sd15.uneven.content}:{weight}>")
    answer = host.ask("/sdapi/v1/txt2img", job)
    assert answer.status == 422 and f"{host.sd15.uneven.content}:{weight}>" in answer.text
    assert host.last_job()["calls"] == 0
    sd15_witness.assert_unchanged()
