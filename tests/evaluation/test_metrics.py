"""The paper's scores, by tiny random encoders."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from klora_lib.errors import SettingsError
from klora_lib.evaluation.metrics import ClipAndDino, Encoder, read_pictures

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
        read_pictures(references / "wash")


def test_no_such_model(tmp_path: Path):
    with pytest.raises(SettingsError, match="^clip: no model can be loaded from "):
        Encoder(str(tmp_path / "nowhere"), "clip", CPU)


class Silent(Exception):
    """Which says nothing."""


def test_whatever_loading_raises_is_a_sentence(models: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fail(name: str, **given: object) -> None:
        asked.append(given)
        raise Silent

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fail)
    with pytest.raises(SettingsError, match=r"^dino: no model can be loaded from 'x' \(Silent\)$"):
        Encoder("x", "dino", CPU)
    assert asked == [{"local_files_only": True}]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match="^clip: no model can be loaded from 'x' "):
        Encoder("x", "clip", CPU)


def test_each_model_in_its_place(models: dict[str, str]):
    with pytest.raises(SettingsError, match="^clip: .* is a ViTModel, which is no model of pictures and words"):
        Encoder(models["dino"], "clip", CPU)
    with pytest.raises(SettingsError, match="^dino: .* is a CLIPModel, which is a model of pictures and words"):
        Encoder(models["clip"], "dino", CPU)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_many_images_are_shown_some_at_a_time(models: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch):
    encoder, seen = Encoder(models[name], name, CPU), []
    images = [picture(seed) for seed in range(70)]
    shown = encoder.embed_batch
    monkeypatch.setattr(encoder, "embed_batch", lambda some: (seen.append(len(some)), shown(some))[1])
    torch.testing.assert_close(encoder.embed(images), shown(images))
    assert seen == [32, 32, 6]
