"""Theorem of the contact sheet: a picture for each method and pair, the true ones beside them, a style shown on a car."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from klora_lib import toy
from klora_lib.cli.main import main
from klora_lib.evaluation import toy as evaluation
from klora_lib.evaluation.run import Sampling, Task
from klora_lib.toy.judge import LOOKS, THINGS

SIDE = 128


class Desk:
    """Draws plain pictures, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.sampling = evaluation.make_sampling()
        self.asked: list[tuple[str, str, str]] = []

    def draw_images(self, task: Task, seeds: Sequence[int], sampling: Sampling | None = None) -> list[Image.Image]:
        prompt = (sampling or self.sampling).fill_prompt(task)
        self.asked.append((task.method, f"{task.content.name}:{task.style.name}", prompt))
        return [Image.new("RGB", (SIDE, SIDE), (200, 30, 40)) for _ in seeds]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr(evaluation, "make_worker", lambda: desk)
    return desk


def count_red(path: Path) -> float:
    """How many plain pictures fit into the red of a sheet."""
    with Image.open(path) as sheet:
        pixels = sheet.convert("RGB").getdata()
    return sum(abs(r - 200) + abs(g - 30) + abs(b - 40) < 40 for r, g, b in pixels) / SIDE**2


def test_every_method_draws_every_pair(desk: Desk, tmp_path: Path) -> None:
    pairs = ["--pairs", "octopus:lineart", "cat:retro"]
    assert main(["sheet", str(tmp_path / "a.jpg"), *pairs, "--methods", "content", "style", "klora"]) == 0
    octopus, cat, car = (f"a {thing} on a sky background" for thing in ("sks octopus", "sks cat", "car"))
    assert desk.asked == [
        ("content", "octopus:lineart", octopus), ("content", "cat:retro", cat),
        ("style", "octopus:lineart", car), ("style", "cat:retro", car),
        ("klora", "octopus:lineart", octopus), ("klora", "cat:retro", cat),
    ]  # fmt: skip
    assert 5.8 < count_red(tmp_path / "a.jpg") < 6.2


def test_the_true_picture_is_there_where_it_exists(desk: Desk, tmp_path: Path) -> None:
    sizes = {}
    for name, more in {"with": [], "without": ["--no-truth"], "across": ["--across"]}.items():
        path = tmp_path / f"{name}.jpg"
        assert main(["sheet", str(path), "--pairs", "octopus:lineart", "--methods", "content", *more]) == 0
        with Image.open(path) as sheet:
            sizes[name] = sheet.size
    assert sizes["with"][1] > sizes["without"][1] + SIDE - 8 and sizes["with"][0] <= sizes["without"][0] + 60
    assert sizes["across"][0] > sizes["across"][1]


def test_all_pairs_with_a_true_picture_are_the_default(desk: Desk, tmp_path: Path) -> None:
    assert main(["sheet", str(tmp_path / "a.jpg")]) == 0
    assert len(desk.asked) == len(evaluation.SHEET) * len(evaluation.list_true_pairs())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pairs", "octopus"], "pairs: must be CONTENT:STYLE, not 'octopus'"),
        (["--pairs", "octopus:cat"], "the toy has no style LoRA 'cat': it has " + ", ".join(toy.STYLE)),
        (["--seed", "x"], "seed: must be a whole number"),
        (["--methods", "magic"], "'magic'"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(words: list[str], said: str, desk: Desk, tmp_path: Path, capsys: Any) -> None:
    assert main(["sheet", str(tmp_path / "a.jpg"), *words]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert said in told and not list(tmp_path.iterdir()) and not desk.asked


# --- single LoRAs ---


def test_single_loras_are_asked_for_what_they_were_trained_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that sees nothing but a cat in line art: only these two are named right."""

    class Judge:
        def score(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = [torch.eye(len(known))[known.index(word)] for known, word in ((THINGS, "cat"), (LOOKS, "lineart"))]
            return rows[0].expand(len(pictures), -1), rows[1].expand(len(pictures), -1)

    monkeypatch.setattr(toy, "load_judge", Judge)
    found = evaluation.measure_alone(desk, range(7))
    assert {(i.method, i.scores[evaluation.NAMED]) for i in found} == {
        (name, float(name in ("cat", "lineart"))) for name in (*toy.CONTENT, *toy.STYLE)
    }
    assert len(found) == 7 * 11 and all({i.seed for i in found if i.method == name} == {*range(7)} for name in toy.STYLE)
    asked = {(name, prompt) for name, _, prompt in desk.asked}
    assert ("retro", "a crown on a sky background") in asked and ("owl", "a sks owl on a sky background") in asked
