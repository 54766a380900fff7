"""Beside ADetailer, which finds faces in the finished image and draws them again, with the scripts that it chooses."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..checks import FAR, largest_difference, same
from ..host import Host, difference, encode
from ..jobs import HIRES, PLAIN, Model, plain
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, with_klora, with_reference

EXTENSION = "adetailer"
TITLE = "ADetailer"
WITHOUT = {"prompt": PLAIN["prompt"]}
MAKER = Path(__file__).parents[1] / "makers" / "detector.py"
# the detector's library would install packages, and write into the user's home
ULTRALYTICS = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}
TOLD = "K-LoRA not in: ADetailer's pass"

pytestmark = pytest.mark.hosts("a1111", "forge")


def prepare(host: Host) -> dict:
    models = host.folder / "adetailer"
    models.mkdir()
    host.environment |= ULTRALYTICS | {"YOLO_CONFIG_DIR": str(models)}
    subprocess.run([host.python, MAKER, models], check=True, env=host.variables())
    return {"ad_extra_models_dir": str(models)}


def detailed(model: str = "detector.pt", skip_img2img: bool = False, **fields: object) -> dict:
    """With a prompt of its own: in that of the job the reference's tags would act."""
    how = {"ad_prompt": "a face", "ad_denoising_strength": 0.8, "ad_use_inpaint_width_height": True}
    size = {"ad_inpaint_width": 64, "ad_inpaint_height": 64, "ad_mask_blur": 0}
    return fields | {"alwayson_scripts": {TITLE: {"args": [True, skip_img2img, {"ad_model": model, **how, **size}]}}}


def used(model: Model) -> dict:
    return detailed()


@ENGINES
def test_its_pass_runs_without_the_pair_and_says_so(witness: Witness, engine: str):
    """The reference acts in the image's own pass only."""
    settings, within = {"engine": engine}, 2 if engine == "bypass" else 1  # it starts from an image that is 1 of 255 off
    got = assert_combines(witness, witness.model.uneven, settings, within=within, without=WITHOUT, **detailed())
    assert TOLD in got.infotext
    before = witness.host.run(with_klora(witness.model.uneven, settings))
    assert TOLD not in before.infotext
    assert same(got.image[:4], before.image[:4]) and same(got.image[:, -4:], before.image[:, -4:])  # outside the face
    assert difference(got.image[24:40, 24:40], before.image[24:40, 24:40]) > FAR


def test_after_both_passes_of_hires_fix(witness: Witness):
    got = assert_combines(witness, witness.model.uneven, without=WITHOUT | HIRES, passes=2, **detailed(**HIRES))
    assert TOLD in got.infotext


@pytest.mark.parametrize("fields", [{"n_iter": 2}, {"batch_size": 2}], ids=str)
def test_several_images(witness: Witness, fields: dict):
    """For every image it has the scripts end and begin, with copies of the job."""
    count = fields.get("n_iter", 1)
    got = assert_combines(witness, witness.model.uneven, without=WITHOUT | fields, passes=count, **detailed(**fields))
    assert len(got.images) == 2 and all(TOLD in text for text in got.info["infotexts"])


def test_with_the_map(witness: Witness):
    pair = witness.model.uneven
    got = witness.host.run(with_klora(pair, {"show_map": True}, **detailed()))
    assert len(got.images) == len(got.info["infotexts"]) == 2
    assert same(got.image, witness.host.image(with_klora(pair, **detailed())))


def test_with_all_scripts_its_pass_has_the_pair(witness: Witness):
    """If the user says so in its settings."""
    host, pair = witness.host, witness.model.uneven
    alone = host.image(with_klora(pair, **detailed()))
    host.options(ad_only_selected_scripts=False)
    try:
        expected = host.run(with_reference(host, pair, tags=False, **detailed()))
        got = host.run(with_klora(pair, {"content_te_weight": 0, "style_te_weight": 0}, **detailed()))
        full = host.run(with_klora(pair, **detailed()))
    finally:
        host.options(ad_only_selected_scripts=True)
    assert largest_difference(got, expected) <= 1
    assert difference(full.image, alone) > FAR
    assert TOLD not in got.infotext and TOLD not in full.infotext
    witness.assert_unchanged()


def test_a_face_in_a_picture_that_is_not_drawn_again(witness: Witness):
    """Its "skip img2img" throws the image's own pass away: what is left has nothing of the pair, and says so."""
    host = witness.host
    if subprocess.run([host.python, "-c", "import mediapipe"], env=host.variables(), capture_output=True).returncode:
        pytest.skip("the WebUI's Python has no mediapipe, with which ADetailer finds this face")
    with Image.open(host.folder / "adetailer" / "face.png") as picture:
        fields = {"init_images": [encode(np.asarray(picture.convert("RGB")))], "denoising_strength": 0.5}
    fields |= detailed("mediapipe_face_full", skip_img2img=True)
    alone = host.image(plain(**fields))
    got = host.run(with_klora(witness.model.uneven, **fields))
    assert same(got.image, alone) and TOLD in got.infotext
    witness.assert_unchanged()


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    assert_off_is_off(host, host_without_klora, detailed(), detailed(n_iter=2))
