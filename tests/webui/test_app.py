"""Theorems of the hooks: what is refused is refused before sampling, with a sentence the API can hand on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import HTTPException

import klora_lib
from klora_lib.settings import FIELDS, Settings

from ..fakes.a1111 import FakeA1111
from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, installed
from ..fakes.processing import Processing, process_images
from ..fakes.samplers import Denoiser, Sampler
from .jobs import close, job, plain, untouched, watch, weights


def test_the_script(host: FakeHost) -> None:
    assert host.script.title() == "K-LoRA"
    assert host.script.show(False) is host.script.show(True) is host.scripts.AlwaysVisible
    assert {kind: len(found) for kind, found in host.script_callbacks.registered.items()} == {
        "cfg_denoiser": 1, "before_ui": 1, "ui_settings": 1, "app_started": 1, "script_unloaded": 1,
    }  # fmt: skip


def test_what_registers_has_a_short_call_stack(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The WebUI reads all of it each time, with the source of each frame; and in it must be a file of ours."""
    stacks = []
    for name in [name for name in vars(host.script_callbacks) if name.startswith("on_")]:
        monkeypatch.setattr(host.script_callbacks, name, lambda _: stacks.append(inspect.stack(0)[1:]))
    host.load_script()
    assert len(stacks) == 5
    for stack in stacks:
        assert len(stack) < 8 and not any("importlib" in frame.filename for frame in stack)
        assert Path(stack[0].filename).is_relative_to(Path(klora_lib.__file__).parents[1])


def test_a_registration_that_fails_is_not_hidden(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.script_callbacks, "on_app_started", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.load_script()


def refused(host: FakeHost, p: Processing) -> str:
    """The sentence by which the job ended: status 422, nothing sampled, nothing changed."""
    before, calls = weights(host), watch(host)
    with pytest.raises(HTTPException) as refusal:
        process_images(p)
    assert refusal.value.status_code == 422 and str(refusal.value) == refusal.value.detail
    assert calls == [] and host.samplers == [] and untouched(host, before) and host.swallowed == []
    assert not hasattr(p, "klora_job") and not any(k.startswith("K-LoRA") for k in p.extra_generation_params)
    return str(refusal.value.detail)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"content": "nobody"}, "K-LoRA: content: there is no LoRA named 'nobody' among the 6 listed"),
        ({"content": ""}, "K-LoRA: content: no LoRA is chosen"),
        ({"content": "None", "style": "nobody"},
         "K-LoRA: content: no LoRA is chosen; style: there is no LoRA named 'nobody' among the 6 listed"),
        ({"style": "subject"}, "K-LoRA: style: must be another LoRA than content, both are 'subject'"),
        ({"alpha": "much"}, "K-LoRA: alpha: must be a number from 0 to 1e+09, not 'much'"),
        ({"alpha": float("nan")}, "K-LoRA: alpha: must be a number from 0 to 1e+09, not nan"),
        ({"alfa": 1}, "K-LoRA: 'alfa': is not a K-LoRA setting; there are " + ", ".join(f.name for f in FIELDS)),
        ({"scale": "s*", "alpha": 0}, "K-LoRA: alpha: must be above 0 with scale s*, which is taken modulo alpha"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_sampling(host: FakeHost, settings: dict[str, Any], sentence: str) -> None:
    assert refused(host, job(host, settings)) == sentence


def test_a_pair_without_a_common_layer_is_drawn_and_says_so(host: FakeHost) -> None:
    """Every layer has the one LoRA that touches it: the image of both, each on its own layers."""
    p = job(host, {"style": "conv_only"})
    drawn = process_images(p)
    image = drawn.images[0]
    assert "K-LoRA common layers: none" in drawn.infotexts[0]
    assert list(p.comments) == [
        "K-LoRA: the two LoRAs have no denoiser layer in common, so nothing is chosen: each acts on its own layers"
    ]
    both = process_images(job(host, {"style": "conv_only", "method": "direct"})).images[0]
    alone = process_images(job(host, {"style": "conv_only", "method": "content"})).images[0]
    assert torch.equal(image, both) and not torch.equal(image, alone)


def test_a_pair_for_another_model_is_refused(host: FakeHost) -> None:
    sentence = refused(host, job(host, {"content": "subject", "style": "other_family"}))
    assert "are made for different models" in sentence and "attn2.to_k is 8×6 and 8×10" in sentence


def test_merge_on_packed_weights_is_refused(host: FakeHost) -> None:
    layer = host.unet.middle_block[1].transformer_blocks[0].attn1.to_q
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    calls = watch(host)
    with pytest.raises(HTTPException, match="merge cannot write"):
        process_images(job(host, {"engine": "merge"}))
    assert calls == []


def test_a_model_replaced_by_another_runtime_is_refused(a1111: FakeHost) -> None:
    a1111.sd_unet.current_unet = type("TRT", (), {"option": type("Option", (), {"label": "TensorRT"})})
    assert "'TensorRT'" in refused(a1111, job(a1111))


def test_an_unknown_host_is_refused(host: FakeHost) -> None:
    delattr(host.networks, host.part)
    sentence = f"K-LoRA: this WebUI's LoRA loader has changed: compared with {host.name}'s, it lacks {host.part}"
    assert refused(host, job(host)) == sentence


def test_a_refusal_in_the_middle_of_a_job_has_the_same_form(host: FakeHost) -> None:
    """What only a prompt's tag or a hires model can show."""
    before = weights(host)
    with pytest.raises(HTTPException) as refusal:
        process_images(job(host, prompt="a cat <lora:subject:1:1:4>"))
    assert refusal.value.status_code == 422 and "<lora:subject:1:1:4>" in refusal.value.detail
    process_images(plain(host))  # Forge has by then merged what the tag says
    assert untouched(host, before)


def test_the_next_job_is_not_refused(host: FakeHost) -> None:
    with pytest.raises(HTTPException):
        process_images(job(host, {"content": "nobody"}))
    assert len(process_images(job(host)).images) == 1
    assert len(process_images(plain(host)).images) == 1


def test_a_model_that_cannot_be_cleaned_is_not_drawn_with(host: FakeHost) -> None:
    """The host swallows what ``process`` raises; an image would be a silent mix of two jobs."""
    before, p = weights(host), job(host)
    stuck: list[Any] = []

    def look(denoiser: Denoiser) -> None:
        if not stuck:
            stuck.append(p.klora_job.current.session.actors[0])
            stuck.append(stuck[0].close)
            stuck[0].close = fail

    host.on_call.append(look)
    with pytest.raises(MemoryError):
        process_images(p)
    calls = watch(host)
    with pytest.raises(MemoryError):
        process_images(job(host))
    assert calls == []
    stuck[0].close = stuck[1]
    host.on_call.clear()
    assert len(process_images(job(host)).images) == 1
    assert untouched(host, before)


# --- arguments ---


def positional(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, f.name) for f in FIELDS)


def test_names_and_positions_mean_the_same(host: FakeHost) -> None:
    by_name, by_place = job(host, {"alpha": 2.0, "gamma": 0.7}), job(host)
    by_place.script_args = positional(Settings(True, "subject", "style", alpha=2.0, gamma=0.7))
    assert torch.equal(process_images(by_name).images[0], process_images(by_place).images[0])
    assert by_name.extra_generation_params == by_place.extra_generation_params


def test_fewer_positions_than_fields_are_enough(host: FakeHost) -> None:
    """Requests written for an older version: the list is append-only."""
    short, whole = job(host), job(host)
    short.script_args = (True, "subject", "style")
    assert torch.equal(process_images(short).images[0], process_images(whole).images[0])


def test_a_closed_panel_is_not_read(host: FakeHost) -> None:
    p = plain(host)
    p.script_args = (False, "a file deleted since", "None", "", "x")
    assert len(process_images(p).images) == 1 and not hasattr(p, "klora_job")


def test_a_request_is_read_even_when_it_is_off(host: FakeHost) -> None:
    assert "'alfa': is not a K-LoRA setting" in refused(host, job(host, {"enabled": False, "alfa": 1}))


# --- infotext and prompt ---


def test_the_infotext_of_a_job(host: FakeHost) -> None:
    p = job(host, {"layers": "attention"})
    process_images(p)
    assert p.extra_generation_params == {
        "K-LoRA enabled": "True", "K-LoRA content": "subject", "K-LoRA style": "style",
        "K-LoRA layers": "attention",
        "Lora hashes": f"subject: {host.networks.available_networks['subject'].shorthash}, "
                       f"style: {host.networks.available_networks['style'].shorthash}",
    }  # fmt: skip


def test_layers_the_model_lacks_are_told(host: FakeHost) -> None:
    host.unet.out[2] = torch.nn.Identity()
    p = job(host, {"content": "subject_full", "style": "style_full"})
    p.init = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        process_images(p)
    p.seeds, p.sampler = [1], host.create_sampler("Euler")
    p.klora_job.has_networks = True
    p.klora_job.open_pass(p, 4, p.klora_job.find_part(p.klora_job.settings, p))
    assert list(p.comments) == ["K-LoRA: layers of the pair that are not in 'tiny': 1, conv_out among them"]


def fail() -> None:
    raise MemoryError("no room")


def stop(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [FakeA1111, FakeForge])
def test_two_hosts_in_a_row_share_nothing(loras: Any, kind: type[FakeHost]) -> None:
    """The whole state of the extension is reachable from its App."""
    images = []
    for _ in range(2):
        with installed(kind, loras) as host:
            host.load_script()
            images.append(process_images(job(host)).images[0])
    assert torch.equal(*images)


@pytest.mark.parametrize("member", ["subject", "style"])
def test_the_option_that_adds_a_lora_to_every_prompt(host: FakeHost, member: str) -> None:
    """It names no tag, and must not bring the pair in a second time."""
    wanted = process_images(job(host)).images[0]
    host.shared.opts.sd_lora = member
    before = weights(host)
    assert torch.equal(process_images(job(host)).images[0], wanted)
    assert untouched(host, before)


def test_loading_the_script_again_leaves_jobs_possible(host: FakeHost) -> None:
    before = weights(host)
    first = process_images(job(host)).images[0]
    for found in host.script_callbacks.registered.values():
        found.clear()
    host.load_script()
    assert torch.equal(process_images(job(host)).images[0], first)
    assert close(weights(host), before) and untouched(host, before)


def test_a_sampler_that_is_not_launched_is_refused(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Sampler, "launch_sampling")
    with pytest.raises(HTTPException, match="does not run through this WebUI's launch_sampling"):
        process_images(job(host))
