"""Wan 2.2 has two denoisers, one for each half of the noise: the pass goes on from one to the other.  And SDXL's refiner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from klora_lib.diffusers import klora
from klora_lib.errors import HostError, PairError

from ..dialects import write_dialect
from ..pairs import random_layers
from .loras import differing, layers_of, shapes, snapshot
from .pipes import TEXT, UNET, clip, clip_tokenizer, discrete, image, quiet, randomised, vae
from .reference import dense, rule

CLOSE = dict(atol=2e-3, rtol=2e-4)
STEPS = 6


def expert(seed: int) -> Any:
    return randomised(
        WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=TEXT,
            freq_dim=8, ffn_dim=24, num_layers=2, rope_max_seq_len=16,
        ),
        seed,
    )  # fmt: skip


def wan(scheduler: Any = None) -> Any:
    return quiet(
        WanPipeline(
            tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=expert(1), transformer_2=expert(2), boundary_ratio=0.8,
        )
    )  # fmt: skip


def video(pipe: Any, steps: int = STEPS, **given: Any) -> Tensor:
    embeds = torch.randn(1, 5, TEXT, generator=torch.Generator().manual_seed(3))
    return pipe(
        prompt_embeds=embeds, height=16, width=16, num_frames=5, num_inference_steps=steps, output_type="latent",
        return_dict=False, **{"guidance_scale": 1.0, "generator": torch.Generator().manual_seed(5), **given},
    )[0].clone()  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("wan")
    there = {name: shape for name, shape in shapes(expert(1), (nn.Linear,)).items() if "blocks." in name}
    paths = folder / "subject.safetensors", folder / "painter.safetensors"
    for path, seed in zip(paths, (1, 2)):
        write_dialect(random_layers(seed, there, 2, 0.05), "diffusers-flux", path)
    return paths


def by_hand(pair: tuple[Path, Path], choose: Callable[[int], Callable[[str], str]]) -> tuple[Tensor, list[str]]:
    """The video with the LoRA that ``choose(call)(layer)`` names written into both denoisers before every call."""
    pipe, calls = wan(), []
    files = dict(zip(("content", "style"), (dense(path, "transformer") for path in pair)))
    for model in (pipe.transformer, pipe.transformer_2):
        base = {layer: model.get_submodule(layer).weight.detach().clone() for layer in files["content"]}

        @torch.no_grad()
        def before(module: nn.Module, *_: Any, base: dict[str, Tensor] = base) -> None:
            chosen = choose(len(calls))
            for layer, weight in base.items():
                module.get_submodule(layer).weight.copy_(weight + files[chosen(layer)][layer][0])  # type: ignore[union-attr]
            calls.append("".join(chosen(layer)[0].upper() for layer in base))

        model.register_forward_pre_hook(before)
    return video(pipe), calls


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_both_denoisers_have_the_choice(engine: str, pair: tuple[Path, Path]) -> None:
    at = rule(dense(pair[0], "transformer"), dense(pair[1], "transformer"))
    expected, calls = by_hand(pair, lambda call: at(call / STEPS))
    pipe = wan()
    plain = video(pipe)
    before = snapshot(pipe)
    with klora(pipe, *pair, engine=engine) as run:
        ours = video(pipe)
        assert torch.equal(video(pipe), ours)
    assert torch.allclose(ours, expected, **CLOSE) and not torch.allclose(ours, plain, atol=0.05)
    assert len(calls) == STEPS and len(set(calls)) > 2
    assert [tuple(run.table(i).shape) for i in range(len(run.passes))] == [(len(run.table()), STEPS)] * 2
    assert run.notes == [] and differing(before, snapshot(pipe)) == [] and torch.equal(video(pipe), plain)


def test_one_lora_alone_is_on_both(pair: tuple[Path, Path]) -> None:
    expected, _ = by_hand(pair, lambda call: lambda layer: "style")
    pipe = wan()
    used: list[nn.Module] = []
    for model in (pipe.transformer, pipe.transformer_2):
        model.register_forward_pre_hook(lambda m, *_: used.append(m))
    with klora(pipe, *pair, method="style"):
        assert torch.allclose(video(pipe), expected, **CLOSE)
    assert used.count(pipe.transformer) >= 2 <= used.count(pipe.transformer_2)


UNIPC = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


@pytest.mark.parametrize("scheduler", [None, UNIPC])
def test_guidance_and_other_schedulers(scheduler: Any, pair: tuple[Path, Path]) -> None:
    pipe = wan(scheduler)
    embeds = torch.zeros(1, 5, TEXT)
    with klora(pipe, *pair) as run:
        video(pipe, guidance_scale=4.0, negative_prompt_embeds=embeds)
        video(pipe, steps=3)
    assert [run.table(i).shape[1] for i in range(2)] == [STEPS, 3]


@pytest.mark.parametrize("only", ["transformer", "transformer_2"])
def test_either_alone(only: str, pair: tuple[Path, Path]) -> None:
    pipe = wan()
    setattr(pipe, "transformer" if only == "transformer_2" else "transformer_2", None)
    pipe.register_to_config(boundary_ratio=None if only == "transformer" else 1.5)
    plain = video(pipe)
    with klora(pipe, *pair) as run:
        assert not torch.allclose(video(pipe), plain, atol=0.05)
    assert run.table().shape[1] == STEPS


def test_what_happens_to_the_other_one_is_no_secret(pair: tuple[Path, Path]) -> None:
    pipe = wan()
    with pytest.raises(HostError, match="got another denoiser"):
        with klora(pipe, *pair):
            pipe.transformer_2 = expert(3)
            video(pipe)
    pipe = wan()
    pipe.transformer_2.blocks[0].attn1.to_q = nn.Linear(24, 12)
    with pytest.raises(PairError, match="blocks.0.self_attn.q is 24×24 in the LoRAs, 12×24 in the model"):
        with klora(pipe, *pair):
            raise AssertionError("the block must not be entered")

    @torch.no_grad()
    def rewrite(_: Any, step: int, *__: Any) -> dict:
        if step == 0:
            pipe.transformer.blocks[0].attn1.to_q.weight.mul_(2)
        return {}

    pipe = wan()
    with pytest.raises(HostError, match="something else rewrote 1 layer of those"):
        with klora(pipe, *pair, method="content"):
            video(pipe, callback_on_step_end=rewrite)


def test_a_second_block_on_the_second_denoiser_is_refused(pair: tuple[Path, Path]) -> None:
    pipe, other = wan(), wan()
    other.transformer_2 = pipe.transformer_2
    with klora(pipe, *pair):
        with pytest.raises(HostError, match="already open"):
            with klora(other, *pair):
                raise AssertionError("the block must not be entered")


# --- SDXL's refiner ---


def refiner() -> Any:
    """Its second text encoder alone, another width, and an aesthetics score in the place of the size of the picture."""
    unet = UNet2DConditionModel(
        cross_attention_dim=TEXT, transformer_layers_per_block=2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=TEXT + 10,
        **{**UNET, "block_out_channels": (12, 24)},
    )  # fmt: skip
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=vae(2), text_encoder=None, tokenizer=None, text_encoder_2=clip(4, projected=True), tokenizer_2=clip_tokenizer(),
        unet=randomised(unet, 1), scheduler=discrete(), requires_aesthetics_score=True, add_watermarker=False,
    )  # fmt: skip
    return quiet(pipe)


PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def test_loras_for_the_refiner_act_on_it(tmp_path: Path) -> None:
    pipe = refiner()
    paths = tmp_path / "subject.safetensors", tmp_path / "painter.safetensors"
    for path, seed in zip(paths, (1, 2)):
        write_dialect(layers_of(pipe, seed), "peft", path)
    given = dict(steps=6, strength=0.5, image=PICTURE, guidance_scale=1)
    other = refiner()
    with torch.no_grad():
        for layer, (change, _) in dense(paths[0], "unet").items():
            weight = other.unet.get_submodule(layer).weight
            weight.add_(change.reshape(weight.shape))
    expected, before = image(other, **given), snapshot(pipe)
    with klora(pipe, *paths, method="content"):
        assert torch.allclose(image(pipe, **given), expected, **CLOSE)
    with klora(pipe, *paths) as run:
        assert not torch.allclose(image(pipe, **given), expected, atol=0.02)
    assert run.notes == [] and differing(before, snapshot(pipe)) == []


def test_loras_for_sdxl_are_refused_on_its_refiner(files: Callable) -> None:
    with pytest.raises(PairError, match="are not made for the model of 'SDXL refiner'.*in the LoRAs.*in the model"):
        with klora(refiner(), *files("sdxl")):
            raise AssertionError("the block must not be entered")


def test_what_multiplies_the_weight_is_scored_for_each_denoiser(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """An OFT changes each denoiser's own weights: with other weights in the second one, the choice there is another."""
    there = {name: shape for name, shape in shapes(expert(1), (nn.Linear,)).items() if "attn1.to_q" in name or "ffn" in name}
    blocks = {f"lycoris_{name.replace('.', '_')}.oft_blocks": torch.randn(2, shape[0] // 2, shape[0] // 2) * 0.15
              for name, shape in there.items()}  # fmt: skip
    save_file(blocks, tmp_path / "oft.safetensors")
    plans = []
    for factor in (1.0, 20.0):
        pipe = wan()
        with torch.no_grad():
            for name in there:
                pipe.transformer_2.get_submodule(name).weight.mul_(factor if "to_q" in name else 1 / factor)
        with klora(pipe, tmp_path / "oft.safetensors", pair[1]) as run:
            plans.append([run.make_session(denoiser, STEPS)[0].plan.facts.scores.content_abs for denoiser in run.denoisers])
            video(pipe)
            ((_, one), (n, two)), progress = run.passes[0].plans, run.passes[0].progress
            assert 0 < n < len(progress)
            assert torch.equal(run.table(), torch.cat([one.over(progress[:n]), two.over(progress[n:])], 1))
    assert torch.equal(plans[0][0], plans[1][0]) and not torch.allclose(plans[0][1], plans[1][1], rtol=0.5)
