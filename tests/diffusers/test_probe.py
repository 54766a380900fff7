"""``plan --probe``: β of est is 1 − cos of two embeddings, of images drawn with each LoRA alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from klora_lib import toy
from klora_lib.cli import probe
from klora_lib.cli.main import main
from klora_lib.diffusers import klora

from ..encoders import write_encoders
from .pipes import FAMILIES

STEPS, SEED, PROMPTS = 2, 5, ("a dog", "wet")


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoders(tmp_path_factory.mktemp("encoders"))["dino"]


@pytest.fixture
def words(model: Path, files: Callable, dino: str) -> list[str]:
    paths = files("sd15", text=True)
    return ["plan", *map(str, paths), "--method", "est", "--steps", str(STEPS), "--seed", str(SEED),
            "--probe", str(model), "--dino", dino, "--prompt", *PROMPTS]  # fmt: skip


def drawn(path: Path, prompt: str, other: Path) -> Image.Image:
    """By a LoRA alone: the other one has weight 0 everywhere."""
    pipe = FAMILIES["sd15"]()
    weights = {"style_weight": 0.0, "style_te_weight": 0.0}
    with klora(pipe, path, other, method="direct", **weights):
        return pipe(prompt, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(SEED)).images[0]


class Pixels:
    """In the place of an encoder: a picture's own pixels about their mean, so that two pictures do differ."""

    def __init__(self, name: str, field: str, device: torch.device):
        assert field == "dino"

    def embed(self, images: list[Image.Image]) -> torch.Tensor:
        flat = torch.stack([torch.tensor(list(image.convert("L").getdata()), dtype=torch.float32) for image in images])
        return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def differ(*pictures: Image.Image) -> float:
    one, two = Pixels("", "dino", torch.device("cpu")).embed(list(pictures))
    return 1 - float(one @ two)


def test_beta_is_what_two_images_differ_by(
    words: list[str], files: Callable, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, style = files("sd15", text=True)
    wanted = differ(drawn(content, PROMPTS[0], style), drawn(style, PROMPTS[1], content))
    others = differ(drawn(content, PROMPTS[0], style), drawn(content, PROMPTS[1], style))
    monkeypatch.setattr(probe, "Encoder", Pixels)
    assert main(words) == 0
    heard = capsys.readouterr()
    told = json.loads(heard.out)
    assert told["beta"] == pytest.approx(wanted, rel=0.02) and others != pytest.approx(wanted, rel=0.1)
    assert told["notes"] == [f"the style discrepancy of the two is {told['beta']:.4f}, and stands in the place of β"]
    first = [layer["content_energy"] >= told["gamma"] * told["beta"] * layer["style_energy"] for layer in told["layers"]]
    assert [layer["selection"][0] == "C" for layer in told["layers"]] == first


def test_an_encoder_is_asked_for_its_embedding(words: list[str], capsys: Any) -> None:
    assert main(words) == 0
    assert 0 < json.loads(capsys.readouterr().out)["beta"] < 2


def test_the_toy_has_its_own_prompts_and_guidance(
    files: Callable, dino: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``generate --model toy`` draws: for each LoRA the prompt of its trigger words, with the toy's own guidance."""
    given: list[tuple[str, float]] = []

    def draw(pipe: Any, block: Any, prompt: str, guidance_scale: float = 7.5, **_: Any) -> tuple[list[Image.Image], None]:
        given.append((prompt, guidance_scale))
        return [Image.new("RGB", (8, 8), (9 * len(given), 0, 0))], None

    monkeypatch.setattr(probe, "draw_images", draw)
    monkeypatch.setattr(probe.pipelines, "load_pipeline", lambda *_: FAMILIES["sd15"]())
    paths = [str(path) for path in files("sd15")]
    assert main(["plan", *paths, "--method", "est", "--probe", "toy", "--dino", dino]) == 0
    capsys.readouterr()
    prompts = [toy.write_prompt("subject"), toy.write_prompt()]
    assert given == [(prompt, toy.GUIDANCE) for prompt in prompts] and prompts[0] != prompts[1]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"--method": "klora"}, "klora: probe: measures the β of the method est, and the method is klora"),
        ({"--beta": "0.5"}, "klora: beta: is measured by --probe, so it cannot be given as well"),
        ({"--dino": None}, "klora: dino: is needed to compare the two images"),
        ({"--prompt": None}, "klora: prompt: is needed, one text for both images or one for each, not 0"),
        ({"--dino": "nowhere"}, "klora: dino: no model can be loaded from 'nowhere'"),
        ({"--probe": None}, "klora: dino: is for a measurement, which needs --probe as well"),
        ({"--probe": None, "--dino": None}, "klora: prompt: is for a measurement, which needs --probe as well"),
        ({"--probe": ""}, "klora: probe: '' is no diffusers folder"),
        ({"--probe": "nowhere"}, "klora: probe: there is nothing at 'nowhere'"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(
    words: list[str], changed: dict[str, str | None], sentence: str, capsys: Any
) -> None:
    for name, value in changed.items():
        if name in words:
            at = words.index(name)
            words = words[:at] + words[at + (3 if name == "--prompt" else 2) :]
        words += [] if value is None else [name, value]
    assert main(words) == 2
    heard = capsys.readouterr()
    assert heard.err.startswith(sentence) and heard.err.count("\n") == 1 and heard.out == ""
