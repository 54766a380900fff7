"""Theorems of whole jobs with the hosts' own loaders as the measure: one LoRA alone, the prompt's tags, the hooks' order."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from klora_lib.hosts import detect
from klora_lib.webui import boot

from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, ScriptData
from ..fakes.processing import process_images
from .jobs import close, expected, job, plain, plan_of, untouched, watch, weights

FULL = {"content": "subject_full", "style": "style_full"}


def test_each_host_is_known_for_what_it_is(host: FakeHost) -> None:
    assert detect().name == host.name


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("extreme", ["content", "style"])
def test_an_extreme_is_the_hosts_own_image_of_that_lora(host: FakeHost, extreme: str, engine: str) -> None:
    """The other one's text-encoder part, which no method leaves out, is switched off."""
    other = {"content": "style_te_weight", "style": "content_te_weight"}[extreme]
    p = job(host, {**FULL, "method": extreme, "engine": engine, other: 0.0})
    image = process_images(p).images[0]
    alone = process_images(plain(host, prompt=f"a cat<lora:{FULL[extreme]}:1>")).images[0]
    assert torch.allclose(image, alone, atol=1e-5)
    assert not torch.allclose(image, process_images(plain(host)).images[0], atol=1e-2)


def test_direct_is_the_hosts_own_image_of_both_tags(host: FakeHost) -> None:
    image = process_images(job(host, {**FULL, "method": "direct", "style_weight": 0.5})).images[0]
    both = process_images(plain(host, prompt="a cat<lora:subject_full:1><lora:style_full:0.5>")).images[0]
    assert torch.allclose(image, both, atol=1e-5)


def test_a_tag_of_the_pair_supplies_its_weight(host: FakeHost) -> None:
    """For the denoiser, for the text encoder, and not a second time as a LoRA of the prompt."""
    tagged = process_images(job(host, {**FULL, "method": "direct"}, prompt="a cat<lora:style_full:0.3:0.7>")).images[0]
    asked = {**FULL, "method": "direct", "style_weight": 0.7, "style_te_weight": 0.3}
    assert torch.equal(tagged, process_images(job(host, asked)).images[0])


def test_two_tags_of_one_lora_are_both_there(host: FakeHost) -> None:
    """With hires, which activates the prompt's networks again."""
    hires = dict(enable_hr=True, hr_second_pass_steps=4)
    asked = {**FULL, "method": "direct", "style_weight": 0.75, "style_te_weight": 0.5}
    prompt = "a cat<lora:style_full:0.25:1><lora:style_full:0.25:-0.25>"
    tagged = process_images(job(host, {**FULL, "method": "direct"}, prompt=prompt, **hires)).images[0]
    assert torch.equal(tagged, process_images(job(host, asked, **hires)).images[0])


def test_forge_too_adds_both_tags(forge: FakeForge) -> None:
    prompt = "a cat<lora:style_full:0.25><lora:style_full:0.5>"
    asked = {**FULL, "method": "style", "content_te_weight": 0.0}
    image = process_images(job(forge, asked, prompt=prompt)).images[0]
    assert torch.allclose(image, process_images(plain(forge, prompt=prompt)).images[0], atol=1e-5)


def test_plain_images_before_and_after_are_the_same(host: FakeHost) -> None:
    """With the tags of the pair in the prompt too: what a loader remembers of our job must not keep it from loading."""
    prompts = ("a cat", "a cat<lora:subject_full:1>", "a cat<lora:subject:0.5><lora:style:1>")
    before = [process_images(plain(host, prompt=prompt)).images[0] for prompt in prompts]
    for prompt, image in zip(prompts, before):
        process_images(job(host, FULL, prompt=prompt))
        assert torch.equal(process_images(plain(host, prompt=prompt)).images[0], image), prompt


# --- Forge's own order ---


def test_the_hook_of_a_hires_pass_is_called_twice_and_acts_once(forge: FakeForge) -> None:
    passes, before, seen = [], weights(forge), watch(forge)
    hook = forge.script.process_before_every_sampling
    forge.script.process_before_every_sampling = lambda p, *args, **kwargs: passes.append(p.is_hr_pass) or hook(p, *args)
    p = job(forge, enable_hr=True, hr_second_pass_steps=4)
    process_images(p)
    assert passes == [False, True, True] and len(p.klora_job.passes) == 2
    for t in range(4):
        assert close(seen[6 + t], expected(forge, before, plan_of(forge, p, 8), 0.5 + 0.5 * t / 4)), t
    assert untouched(forge, before)


def test_the_pair_is_never_merged_by_the_host(forge: FakeForge) -> None:
    """Its patches are out of the patchers by the time these are loaded; another LoRA's are not."""
    p = job(forge, FULL, prompt="a cat<lora:subject_full:1><lora:conv_only:0.5>")
    process_images(p)
    merged = {Path(key[0]).name for patcher in forge.on_gpu for key in patcher.lora_patches}
    ours = {name for name in merged if "K-LoRA text encoder" in name}
    assert merged - ours == {"conv_only.safetensors"} and len(ours) == 2


# --- the plot's module ---


@pytest.mark.parametrize("name", ["xyz_grid.py", "scripts.xyz_grid"])
def test_the_plot_is_found_by_the_name_its_host_gives_it(host: FakeHost, name: str) -> None:
    module = types.ModuleType(name)
    module.AxisOption = object  # type: ignore[attr-defined]
    host.scripts.scripts_data.append(ScriptData(type("Script", (), {"__module__": name}), "", "", module))
    assert boot.find_xyz_module() is module


def test_a_plot_that_was_imported_is_found_too(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("scripts.xyz_grid")
    monkeypatch.setitem(sys.modules, "scripts.xyz_grid", module)
    assert boot.find_xyz_module() is module
