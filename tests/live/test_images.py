"""Images: the extremes are the single LoRAs, and everything between is the brute-force reference."""

from __future__ import annotations

import numpy as np
import pytest

from .checks import FAR, assert_like_reference, assert_reference_at_work, same
from .host import Host, difference, encode
from .jobs import HIRES, PLAIN, Model, Pair, klora, plain, reference, tag

SAMPLERS = ("Euler a", "Heun", "DPM++ 2M", "UniPC", "DDIM", "Restart", "DPM++ SDE")


def only_denoiser_of(pair, role: str, **fields: object) -> dict:
    """A plain job in which the text encoders carry both LoRAs and the denoiser one."""
    weights = {"content": (1, 0), "style": (0, 1)}[role]
    return plain(prompt=PLAIN["prompt"] + tag(pair.content, 1, weights[0]) + tag(pair.style, 1, weights[1]), **fields)


# what the rule does with its settings is the same code everywhere: two kinds of host are enough
TWO_KINDS = pytest.mark.hosts("a1111", "forge")
EXTREMES = pytest.mark.parametrize(("role", "beta"), [("content", 1e-6), ("style", 1e6)])


def assert_one_lora(host: Host, pair: Pair, role: str, beta: float) -> None:
    expected = host.image(only_denoiser_of(pair, role))
    got = host.image(klora(pair, {"alpha": 0, "beta": beta}))
    assert difference(expected, host.known_image(plain())) > FAR
    assert difference(got, expected) <= 1


@EXTREMES
def test_extreme_scale_leaves_one_lora(host: Host, model: Model, role: str, beta: float):
    assert_one_lora(host, model.full, role, beta)


@EXTREMES
def test_extreme_scale_without_text_encoder_parts(host: Host, sd15: Model, role: str, beta: float):
    assert_one_lora(host, sd15.attention, role, beta)


@pytest.mark.parametrize("role", ["content", "style"])
def test_method_content_and_style_leave_one_lora(host: Host, sd15: Model, role: str):
    expected = host.image(only_denoiser_of(sd15.full, role))
    assert difference(host.image(klora(sd15.full, {"method": role})), expected) <= 1


def test_method_direct_is_the_prompt_with_both(host: Host, sd15: Model):
    expected = host.image(plain(prompt=PLAIN["prompt"] + tag(sd15.full.content) + tag(sd15.full.style)))
    got = host.image(klora(sd15.full, {"method": "direct"}))
    assert difference(got, expected) <= 1
    assert difference(got, host.image(klora(sd15.full))) > FAR


def test_defaults(host: Host, model: Model):
    assert_like_reference(host, model.uneven)


@pytest.mark.hosts("a1111")  # the pairs made for Forge switch in every layer at the same step
@pytest.mark.parametrize("which", ["attention", "full"])
def test_even_pairs(host: Host, sd15: Model, which: str):
    assert_like_reference(host, getattr(sd15, which))


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_sampler(host: Host, sd15: Model, sampler: str):
    steps = 20 if sampler == "Restart" else 6  # it restarts only where there are enough
    assert_like_reference(host, sd15.uneven, sampler_name=sampler, steps=steps)


def test_second_order_sampler(host: Host, model: Model):
    assert_like_reference(host, model.uneven, sampler_name="Heun", steps=4)


def test_hires_fix(host: Host, model: Model):
    assert_like_reference(host, model.uneven, passes=2, steps=4, **HIRES)


def test_hires_checkpoint(host: Host, sd15: Model):
    fields = HIRES | {"hr_checkpoint_name": host.sd15_other}
    got = assert_like_reference(host, sd15.uneven, passes=2, **fields)
    assert difference(got.image, host.image(klora(sd15.uneven, **HIRES))) > FAR


def test_img2img(host: Host, model: Model):
    start = encode(host.known_image(plain(seed=5)))
    assert_like_reference(host, model.uneven, init_images=[start], denoising_strength=0.75, steps=8)


@pytest.mark.parametrize("strength", [0.4, 1])
def test_img2img_strength(host: Host, sd15: Model, strength: float):
    start = encode(host.known_image(plain(seed=5)))
    assert_like_reference(host, sd15.uneven, init_images=[start], denoising_strength=strength, steps=8)


def test_inpainting(host: Host, sd15: Model):
    start = host.known_image(plain(seed=5))
    mask = np.zeros_like(start)
    mask[16:48, 16:48] = 255
    fields = {"init_images": [encode(start)], "mask": encode(mask), "denoising_strength": 0.75, "inpainting_fill": 1}
    assert_like_reference(host, sd15.uneven, **fields, steps=8)


@TWO_KINDS
@pytest.mark.parametrize(
    "settings",
    [
        {"scale": "s*"},
        {"scale": "s*", "alpha": 1.0, "beta": 0.3},
        {"alpha": 2.5, "beta": 0.1},
        {"content_weight": 0.7},
        {"content_weight": 0.7, "style_weight": -0.5, "content_te_weight": 0.2},
        {"layers": "attention"},
        {"layers": "attention-only"},
        {"gamma": "mean-ratio"},
        {"gamma": 0.8},
        {"k": 5},
        {"k": 1},
        {"k": "all"},
        {"balance": 0.4},
        {"method": "est"},
        {"method": "est", "balance": -0.5, "beta": 0.8},
        {"progress": "noise"},
    ],
    ids=str,
)
def test_settings(host: Host, sd15: Model, settings: dict):
    got = assert_like_reference(host, sd15.uneven, settings)
    assert not same(got.image, host.image(klora(sd15.uneven)))


def assert_like_joined(host: Host, pair: Pair, settings: dict, **fields: object) -> None:
    """A method that acts the same at every call, by brute force; it is neither the sum of both nor the paper's rule."""
    expected = host.image(reference(host.lora, pair, settings, **fields))
    (one,) = host.reference()
    assert one["largest_change"] > 0.01 and all(len(set(row)) == 1 for row in one["choices"].values())
    assert difference(host.image(klora(pair, settings, **fields)), expected) <= 1
    for other in ({"method": "direct"}, {}):
        assert difference(expected, host.image(klora(pair, other, **fields))) > FAR


JOINED = [{"method": "np"}, {"method": "np", "mu": 1e9}, {"method": "average"}, {"method": "ties"},
          {"method": "ties", "density": 0.6, "content_weight": 0.7}]  # fmt: skip


@TWO_KINDS
@pytest.mark.parametrize("settings", JOINED, ids=str)
def test_methods_that_join_the_two(host: Host, model: Model, settings: dict):
    assert_like_joined(host, model.uneven, settings)


def test_blora(host: Host, model: Model):
    if model.name == "sdxl":
        assert_like_joined(host, model.uneven, {"method": "blora"})
        return
    answer = host.ask("/sdapi/v1/txt2img", klora(model.uneven, {"method": "blora"}))
    assert answer.status == 422 and "no layer in up_blocks.0.attentions.0" in answer.text


def test_several_settings_at_once(host: Host, model: Model):
    settings = {"scale": "s*", "layers": "attention", "gamma": "mean-ratio", "style_weight": 0.8}
    prompt = PLAIN["prompt"] + tag(model.attention.content, 0.5, 0.5)
    assert_like_reference(host, model.uneven, settings, prompt=prompt)


@TWO_KINDS
def test_k_beyond_every_layer_takes_all_elements(host: Host, sd15: Model):
    assert_like_reference(host, sd15.uneven, {"k": 10**9})


@TWO_KINDS
def test_layers_of_one_lora_only(host: Host, sd15: Model):
    """ff and proj are in the content's file alone: they carry it at every step."""
    pair = Pair(sd15.uneven.content, sd15.attention.style)
    assert_like_reference(host, pair)


@TWO_KINDS
@pytest.mark.parametrize("written", ["0.6", "0.6:0.6", "0.6:0.9", "te=0.3:unet=0.8"])
def test_tag_supplies_the_weight(host: Host, sd15: Model, written: str):
    text, denoiser = {"0.6": (0.6, 0.6), "0.6:0.6": (0.6, 0.6), "0.6:0.9": (0.6, 0.9)}.get(written, (0.3, 0.8))
    settings = {"content_te_weight": text, "content_weight": denoiser}
    assert_like_reference(host, sd15.uneven, settings, klora_prompt=f"<lora:{sd15.uneven.content}:{written}>")


def test_tag_of_each_lora(host: Host, sd15: Model):
    settings = {"content_weight": 0.8, "style_weight": 1.2}
    tags = tag(sd15.uneven.style, 1.2, 1.2) + tag(sd15.uneven.content, 0.8, 0.8)
    assert_like_reference(host, sd15.uneven, settings, klora_prompt=tags)


def test_another_lora_in_the_prompt(host: Host, sd15: Model):
    prompt = PLAIN["prompt"] + tag(sd15.attention.content, 0.5, 0.5)
    got = assert_like_reference(host, sd15.uneven, prompt=prompt)
    assert difference(got.image, host.image(klora(sd15.uneven))) > FAR


@pytest.fixture
def functional(host: Host):
    host.options(lora_functional=True)
    yield
    host.options(lora_functional=False)


@pytest.mark.hosts("a1111")
def test_lora_functional(host: Host, sd15: Model, functional):
    prompt = PLAIN["prompt"] + tag(sd15.attention.content, 0.5, 0.5)
    assert_like_reference(host, sd15.uneven)
    got = assert_like_reference(host, sd15.uneven, prompt=prompt)
    assert difference(got.image, host.image(klora(sd15.uneven))) > FAR


def test_bypass(host: Host, model: Model):
    assert_like_reference(host, model.uneven, {"engine": "bypass"}, within=2)


def test_engines_agree(host: Host, sd15: Model):
    merge, bypass, auto = (host.image(klora(sd15.uneven, {"engine": e})) for e in ("merge", "bypass", "auto"))
    assert difference(merge, bypass) <= 2
    assert same(merge, auto)


def test_bypass_beside_another_lora_and_in_hires(host: Host, sd15: Model):
    prompt = PLAIN["prompt"] + tag(sd15.attention.content, 0.5, 0.5)
    assert_like_reference(host, sd15.uneven, {"engine": "bypass"}, within=2, passes=2, prompt=prompt, **HIRES)


@pytest.mark.hosts("a1111", "forge", "reforge", "classic")  # Neo has no such sampler and takes its default
def test_adaptive_sampler_goes_by_noise(host: Host, sd15: Model):
    """It makes hundreds of calls, at times of its own choice. The first 40 will do where S starts steep."""
    steep, noise, fields = {"alpha": 150, "beta": 0}, {"progress": "noise"}, {"sampler_name": "DPM adaptive"}
    jobs = [reference(host.lora, sd15.uneven, steep | noise, **fields)]
    jobs += [klora(sd15.uneven, steep | more, **fields) for more in ({}, noise)]
    images = []
    for job in (*jobs, plain(**fields)):
        host.arm(interrupt=40)
        images.append(host.image(job))
        if not images[1:]:
            assert_reference_at_work(host.reference(), 1)
    assert difference(images[1], images[0]) <= 1
    assert same(images[1], images[2])
    assert difference(images[1], images[3]) > FAR


def test_progress_by_noise_on_another_schedule(host: Host, sd15: Model):
    assert_like_reference(host, sd15.uneven, {"progress": "noise"}, scheduler="Karras")


def test_batch_count_is_so_many_single_runs(host: Host, sd15: Model):
    batch = host.run(klora(sd15.uneven, n_iter=3))
    assert len(batch.images) == 3
    for i, image in enumerate(batch.images):
        assert same(image, host.image(klora(sd15.uneven, seed=PLAIN["seed"] + i)))
    assert difference(batch.images[0], batch.images[1]) > FAR


def test_batch_size(host: Host, sd15: Model):
    got = assert_like_reference(host, sd15.uneven, batch_size=2)
    assert len(got.images) == 2
    assert difference(got.images[1], host.image(klora(sd15.uneven, seed=PLAIN["seed"] + 1))) <= 1


def test_and_prompts(host: Host, sd15: Model):
    assert_like_reference(host, sd15.uneven, prompt=PLAIN["prompt"] + " AND a dog :0.7")


def test_unequal_prompt_lengths(host: Host, sd15: Model):
    """More than 75 tokens: the host calls the model twice a step."""
    assert_like_reference(host, sd15.uneven, prompt=", ".join(f"cat number {i}" for i in range(40)))
