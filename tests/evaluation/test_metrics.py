"""The paper's scores, by tiny random encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from klora_lib.errors import SettingsError
from klora_lib.evaluation.metrics import ClipAndDino, Encoder, pictures

from ..encoders import write_encoders


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8))


@pytest.fixture
def references(tmp_path: Path) -> Path:
    for lora, seeds in (("dog", (1, 2)), ("wash", (3,))):
        (tmp_path / lora).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / lora / f"{seed}.png")
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    return tmp_path


CPU = torch.device("cpu")


def test_each_score_is_the_mean_cosine_to_the_pictures_of_its_lora(models: dict[str, str], references: Path):
    metric = ClipAndDino(models["clip"], models["dino"], references, CPU)
    scores = metric.score([picture(1), picture(3), picture(7)], "dog", "wash")
    for column, encoder, seeds in (
        ("Style Sim", "clip", (3,)),
        ("CLIP Score", "clip", (1, 2)),
        ("DINO Score", "dino", (1, 2)),
    ):
        alone = Encoder(models[encoder], encoder, CPU)
        for image, got in zip((1, 3, 7), scores[column], strict=True):
            ours = alone.embed([picture(image)])
            cosines = [torch.cosine_similarity(ours, alone.embed([picture(s)])).item() for s in seeds]
            assert got == pytest.approx(np.mean(cosines), abs=1e-5)
    assert scores["Style Sim"][1] == pytest.approx(1, abs=1e-5)
    assert scores["Style Sim"][0] < 0.999


def test_no_pictures_of_a_lora(models: dict[str, str], references: Path):
    metric = ClipAndDino(models["clip"], models["dino"], references, CPU)
    with pytest.raises(SettingsError, match="references: there is no picture .*'cat'"):
        metric.score([picture(1)], "cat", "wash")


def test_a_broken_picture_is_named(references: Path):
    (references / "wash" / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(SettingsError, match=r"references: 'torn.png' of 'wash' is no readable picture"):
        pictures(references / "wash")


def test_no_such_model(tmp_path: Path):
    with pytest.raises(SettingsError, match="^clip: no model can be loaded from "):
        Encoder(str(tmp_path / "nowhere"), "clip", CPU)
