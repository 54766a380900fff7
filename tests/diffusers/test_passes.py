"""Where a pass is: every scheduler's steps, img2img's beginning, several calls a step, several calls of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from klora_lib.diffusers import klora
from klora_lib.engine.session import Session
from klora_lib.rule.schedule import compute_noise_progress

from .pipes import FAMILIES, calls_of, denoiser, image
from .reference import brute_force

CLOSE = dict(atol=2e-3, rtol=2e-4)
DISCRETE: dict[str, tuple[int, dict]] = {  # denoiser calls of 6 steps
    "DDIMScheduler": (6, {}),
    "DDPMScheduler": (6, {}),
    "PNDMScheduler": (7, {"skip_prk_steps": True}),
    "EulerDiscreteScheduler": (6, {}),
    "EulerAncestralDiscreteScheduler": (6, {}),
    "UniPCMultistepScheduler": (6, {}),
    "DPMSolverMultistepScheduler": (6, {"use_karras_sigmas": True}),
    "HeunDiscreteScheduler": (11, {}),
    "KDPM2DiscreteScheduler": (11, {}),
    "KDPM2AncestralDiscreteScheduler": (11, {}),
    "LCMScheduler": (6, {}),
}


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every progress that a session is brought to."""
    seen: list[float] = []
    advance = Session.advance

    def watched(self: Session, value: float) -> None:
        seen.append(value)
        advance(self, value)

    monkeypatch.setattr(Session, "advance", watched)
    return seen


def with_scheduler(pipe: Any, name: str, **more: Any) -> Any:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **more)
    return pipe


@pytest.mark.parametrize("name", DISCRETE)
def test_every_scheduler(name: str, make: Callable, files: Callable, progress: list[float]) -> None:
    calls, more = DISCRETE[name]
    pipe, pair = with_scheduler(make("sd15"), name, **more), files("sd15", only="attn")
    with klora(pipe, *pair) as run:
        ours = image(pipe, steps=6, guidance_scale=1)
    assert progress == pytest.approx([t / calls for t in range(calls)]) and calls_of(run) == [calls]
    assert run.passes[0].plan.facts.steps == (7 if name == "PNDMScheduler" else 6)
    other = with_scheduler(FAMILIES["sd15"](), name, **more)
    with brute_force(other, *pair, lambda n: n / calls):
        theirs = image(other, steps=6, guidance_scale=1)
    assert torch.allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("family", "name"),
    [  # FluxPipeline gives sigmas of its own, which Heun does not take
        ("flux", "FlowMatchEulerDiscreteScheduler"),
        ("sd3", "FlowMatchEulerDiscreteScheduler"),
        ("sd3", "FlowMatchHeunDiscreteScheduler"),
    ],
)
def test_flow_schedulers(family: str, name: str, make: Callable, files: Callable, progress: list[float]) -> None:
    pipe = make(family)
    pipe.scheduler = getattr(diffusers, name)(shift=3.0)
    calls = 11 if "Heun" in name else 6
    with klora(pipe, *files(family, only="attn")):
        image(pipe, steps=6)
    assert progress == pytest.approx([t / calls for t in range(calls)])


SLG = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9}


@pytest.mark.parametrize(("family", "more"), [("flux", {"true_cfg_scale": 3.0}), ("sd3", SLG)])
def test_guidance_of_several_calls_a_step(
    family: str, more: dict, make: Callable, files: Callable, progress: list[float]
) -> None:
    pipe = make(family)
    calls = []
    hook = denoiser(pipe).register_forward_pre_hook(lambda *_: calls.append(1))
    with klora(pipe, *files(family, only="attn")) as run:
        image(pipe, steps=5, negative_prompt="a", **more)
    hook.remove()
    assert sorted(set(progress)) == [t / 5 for t in range(5)] and calls_of(run) == [5]
    assert len(calls) == len(progress) > 5 and progress == sorted(progress)
    assert max(progress.count(t / 5) for t in range(5)) == 2


IMG2IMG = {
    "sd15": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}


def img2img(family: str, pipe: Any, scheduler: Any = None) -> Any:
    pipe = IMG2IMG[family](**{**pipe.components, "scheduler": scheduler or pipe.scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("strength", [0.5, 0.55])
@pytest.mark.parametrize("family", FAMILIES)
def test_img2img_begins_at_its_noise(
    family: str, strength: float, make: Callable, files: Callable, progress: list[float]
) -> None:
    pipe, pair = img2img(family, make(family)), files(family, only="attn")
    with klora(pipe, *pair) as run:
        ours = image(pipe, steps=10, strength=strength, image=PICTURE)
    (calls,) = calls_of(run)
    expected = [(1 - strength) + strength * t / calls for t in range(calls)]
    assert 5 <= calls <= 6 and progress == pytest.approx(expected)
    assert run.passes[0].plan.facts.steps == round(calls / strength)
    other = img2img(family, FAMILIES[family]())
    with brute_force(other, *pair, lambda n: expected[n]):
        theirs = image(other, steps=10, strength=strength, image=PICTURE)
    assert torch.allclose(ours, theirs, **CLOSE)


def test_img2img_with_two_calls_a_step(make: Callable, files: Callable, progress: list[float]) -> None:
    pipe = with_scheduler(img2img("sd15", make("sd15")), "HeunDiscreteScheduler")
    with klora(pipe, *files("sd15", only="attn")) as run:
        image(pipe, steps=8, strength=0.5, image=PICTURE)
    calls = len(progress)
    assert calls_of(run) == [calls] and calls in (7, 8)
    assert progress == pytest.approx([0.5 + 0.5 * t / calls for t in range(calls)])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_the_map_shows_what_acted(name: str, make: Callable, files: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """By noise and from the middle of the schedule, where t/T would tell something else."""
    acted: list[torch.Tensor] = []
    advance = Session.advance

    def watched(session: Session, at: float) -> None:
        advance(session, at)
        shared = session.rows >= 0
        acted.append(torch.zeros(len(session.plan.units), dtype=torch.uint8))
        acted[-1][session.rows[shared]] = session.masks[shared]

    monkeypatch.setattr(Session, "advance", watched)
    pipe = with_scheduler(img2img("sd15", make("sd15")), name)
    with klora(pipe, *files("sd15", only="attn"), progress="noise") as run:
        image(pipe, steps=12, strength=0.7, image=PICTURE)
    shown = torch.stack(acted, dim=1)
    assert torch.equal(run.table(), shown)
    assert not torch.equal(run.passes[0].plan.table(shown.shape[1]), shown)


def test_base_and_refiner_share_one_schedule(make: Callable, files: Callable, progress: list[float]) -> None:
    base, pair = make("sdxl"), files("sdxl", only="attn")
    with klora(base, *pair):
        latents = image(base, steps=10, denoising_end=0.6)
    refiner = img2img("sdxl", base)
    with klora(refiner, *pair):
        image(refiner, steps=10, denoising_start=0.6, image=latents)
    assert progress == pytest.approx([t / 10 for t in range(10)])


def test_a_batch_is_one_pass_and_the_same_images(make: Callable, files: Callable, progress: list[float]) -> None:
    pipe = make("sd15")
    with klora(pipe, *files("sd15", text=True)) as run:
        alone = image(pipe)
        both = image(pipe, generator=[torch.Generator().manual_seed(n) for n in (5, 6)], num_images_per_prompt=2)
    assert calls_of(run) == [5, 5] and len(progress) == 10 and both.shape[0] == 2
    assert torch.allclose(both[0], alone[0], **CLOSE)


def test_every_call_of_the_pipeline_begins_anew(make: Callable, files: Callable, progress: list[float]) -> None:
    pipe, pair = make("sd15"), files("sd15", text=True)
    plain = image(pipe)
    with klora(pipe, *pair):
        first, second = image(pipe), image(pipe)
        shorter = image(pipe, steps=3)
    assert torch.equal(first, second)
    with klora(pipe, *pair):
        assert torch.equal(image(pipe, steps=3), shorter) and torch.equal(image(pipe), first)
    assert torch.equal(image(pipe), plain)


def test_the_denoiser_is_given_back_between_calls(make: Callable, files: Callable) -> None:
    pipe = make("sd15")
    before = [p.clone() for p in pipe.unet.parameters()]
    with klora(pipe, *files("sd15")):
        image(pipe)
        assert all(torch.equal(p, q) for p, q in zip(pipe.unet.parameters(), before))


def test_another_pipeline_over_the_same_models_has_it_too(make: Callable, files: Callable, progress: list[float]) -> None:
    pipe, pair = make("sd15"), files("sd15", only="attn")
    other = img2img("sd15", pipe)
    plain = image(other, steps=10, strength=0.5, image=PICTURE)
    with klora(pipe, *pair):
        assert not torch.allclose(image(other, steps=10, strength=0.5, image=PICTURE), plain, atol=5e-3)
    assert progress == pytest.approx([0.5 + 0.5 * t / 5 for t in range(5)])


@pytest.mark.parametrize(("family", "last"), [("sd15", 999), ("flux", 1000)])
def test_progress_by_noise(family: str, last: int, make: Callable, files: Callable, progress: list[float]) -> None:
    pipe = make(family)
    with klora(pipe, *files(family, only="attn"), progress="noise"):
        image(pipe, steps=4)
    assert progress == pytest.approx([compute_noise_progress(float(t), last + 1) for t in pipe.scheduler.timesteps])
    assert progress == pytest.approx([1 - float(t) / last for t in pipe.scheduler.timesteps])
