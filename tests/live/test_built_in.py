"""Beside scripts and options that come with the WebUI: both act, as they do alone, and everything is as before."""

from __future__ import annotations

import numpy as np
import pytest

from .checks import FAR, assert_reference_at_work, largest_difference
from .host import Host, difference, encode
from .jobs import HIRES, PLAIN, plain
from .makers.control import NAME
from .neighbours.checks import assert_combines, with_klora, with_reference
from .test_api import script_info
from .test_safety import ENGINES
from .witness import Witness

WITHOUT = {"prompt": PLAIN["prompt"]}

pytestmark = pytest.mark.hosts("a1111", "forge")


def started(host: Host) -> dict:
    return {"init_images": [encode(host.known_image(plain(seed=5)))], "denoising_strength": 0.7, "steps": 8}


def test_prompt_matrix(host: Host, sd15_witness: Witness):
    """Every part of the prompt after the first with and without: the reference's tags are in the first."""
    pair, fields = host.sd15.uneven, {"script_name": "prompt matrix", "script_args": [False, False, "positive", "comma", 0]}
    job = with_reference(host, pair, prompt="a cat", **fields)
    parts = " | on a red chair | at night"
    expected = host.run(job | {"prompt": job["prompt"] + parts})
    assert_reference_at_work(host.reference(), 4)
    got = host.run(with_klora(pair, prompt=f"a cat{parts}", **fields))
    assert len(got.images) == 5
    # over the grid is written what the prompts say
    for a, b in zip(got.images[1:], expected.images[1:], strict=True):
        assert difference(a, b) <= 1
    assert difference(got.images[1], got.images[2]) > FAR
    sd15_witness.assert_unchanged()


def test_loopback(host: Host, sd15_witness: Witness):
    fields = started(host) | {"script_name": "loopback", "script_args": [2, 0.5, "Linear", "None"]}
    assert_combines(sd15_witness, host.sd15.uneven, without=started(host), passes=2, **fields)


def test_sd_upscale(host: Host, sd15_witness: Witness):
    """Four tiles, each with a sampling pass of its own."""
    fields = started(host) | {"script_name": "sd upscale", "script_args": ["", 0, "Lanczos", 2]}
    expected = host.run(with_reference(host, host.sd15.uneven, **fields))
    assert_reference_at_work(host.reference(), 4)
    got = host.run(with_klora(host.sd15.uneven, **fields))
    assert got.image.shape[:2] == (128, 128)
    assert largest_difference(got, expected) <= 1
    assert difference(got.image, host.image(plain(**fields))) > FAR
    sd15_witness.assert_unchanged()


def test_token_merging(host: Host, sd15_witness: Witness):
    """Which tokens are merged is a choice that bypass's rounding may turn: its image is then another, and no worse."""
    pair = host.sd15.uneven
    whole = host.image(with_klora(pair, **HIRES))
    host.options(token_merging_ratio=0.5, token_merging_ratio_hr=0.5)
    try:
        expected = host.run(with_reference(host, pair, **HIRES))
        assert_reference_at_work(host.reference(), 2)
        got = host.run(with_klora(pair, **HIRES))
    finally:
        host.options(token_merging_ratio=0, token_merging_ratio_hr=0)
    assert largest_difference(got, expected) <= 1
    assert difference(got.image, whole) > FAR
    sd15_witness.assert_unchanged()


@pytest.mark.hosts("a1111")  # with so small a model Forge's gives the picture back as it was, whatever the denoiser drew
def test_soft_inpainting(host: Host, sd15_witness: Witness):
    mask = np.zeros((64, 64, 3))
    mask[16:48, 16:48] = np.linspace(0, 255, 32)[:, None]
    without = started(host) | {"mask": encode(mask), "inpainting_fill": 1, "mask_blur": 2}
    fields = without | always_on(host, "soft inpainting", is_img2img=True)
    assert_combines(sd15_witness, host.sd15.uneven, without=without, **fields)


def always_on(host: Host, title: str, is_img2img: bool = False, **changed: object) -> dict:
    """The script with its own defaults but for what is ``changed``, by the labels of its panel; switched on."""
    args = script_info(host, title, is_img2img)["args"]
    values = [changed.get(arg["label"], arg["value"]) for arg in args]
    return {"alwayson_scripts": {title: {"args": [True, *values[1:]]}}}


LARGER = {"width": 128, "height": 128}  # at 64 pixels the middle block has a single token to attend to
AROUND = {
    "dynamicthresholding (cfg-fix) integrated": ({"Mimic Scale": 2, "Threshold Percentile": 0.9}, {}),
    "kohya hrfix integrated": ({}, {}),
    "selfattentionguidance integrated (sd 1.x, sd 2.x, sdxl)": ({"Scale": 2}, LARGER),
    "perturbedattentionguidance integrated": ({}, LARGER),
}


@pytest.mark.hosts("forge")
@pytest.mark.parametrize("title", list(AROUND))
def test_what_forge_puts_around_the_denoiser(host: Host, sd15_witness: Witness, title: str):
    values, fields = AROUND[title]
    together = always_on(host, title, **values) | fields
    assert_combines(sd15_witness, host.sd15.uneven, without=WITHOUT | fields, **together)


# --- Forge's own ControlNet ---

def controlled(host: Host, **unit: object) -> dict:
    listed = host.must("/controlnet/model_list")["model_list"]
    model = next(name for name in listed if name.startswith(NAME))
    board = np.indices((64, 64)).sum(0) // 8 % 2 * 255
    picture = encode(np.stack([board] * 3, axis=-1))
    how = {"enabled": True, "module": "None", "model": model, "image": picture, "weight": 1.0, **unit}
    return {"alwayson_scripts": {"ControlNet": {"args": [how]}}}


@pytest.mark.hosts("forge")
@ENGINES
def test_controlnet(host: Host, sd15_witness: Witness, engine: str):
    assert_combines(sd15_witness, host.sd15.uneven, {"engine": engine}, without=WITHOUT, **controlled(host))


@pytest.mark.hosts("forge")
def test_controlnet_within_a_part_of_the_steps(host: Host, sd15_witness: Witness):
    fields = controlled(host, guidance_start=0.3, guidance_end=0.7)
    assert_combines(sd15_witness, host.sd15.uneven, without=WITHOUT, **fields)


@pytest.mark.hosts("forge")
def test_controlnet_in_both_passes_of_hires_fix(host: Host, sd15_witness: Witness):
    fields = controlled(host) | HIRES
    assert_combines(sd15_witness, host.sd15.uneven, without=WITHOUT | HIRES, passes=2, **fields)


@pytest.mark.hosts("forge")
@ENGINES
def test_reference_picture(host: Host, sd15_witness: Witness, engine: str):
    """Forge's ControlNet calls the denoiser once more at every step, for the picture."""
    fields = controlled(host, module="reference_only", model="None", threshold_a=0.5)
    assert_combines(sd15_witness, host.sd15.uneven, {"engine": engine}, without=WITHOUT, **fields)


@pytest.mark.hosts("forge")
def test_freeu(host: Host, sd15_witness: Witness):
    """It acts on levels twice and four times as wide as the first; all of the tiny model's are as wide."""
    fields = always_on(host, "freeu integrated (sd 1.x, sd 2.x, sdxl)", B1=1.4, B2=1.6, S1=0.6, S2=0.4) | LARGER
    before = host.must("/klora-probe/config", {"model_channels": 160})
    try:
        assert_combines(sd15_witness, host.sd15.uneven, without=WITHOUT | LARGER, **fields)
    finally:
        host.must("/klora-probe/config", before)
