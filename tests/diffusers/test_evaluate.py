"""``evaluate`` on a saved pipeline: its scores are those of the images that ``generate`` draws."""

from __future__ import annotations

import csv
import errno
import importlib.util
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from klora_lib import toy
from klora_lib.cli import files, options
from klora_lib.cli.evaluate import split_words
from klora_lib.cli.main import main
from klora_lib.drawing import pipelines
from klora_lib.errors import SettingsError
from klora_lib.evaluation.metrics import ClipAndDino
from klora_lib.evaluation.run import Task, Worker
from klora_lib.evaluation.table import ScoredImage

from ..encoders import write_encoders
from .pipes import FAMILIES

COLUMNS = ("Style Sim", "CLIP Score", "DINO Score")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, files: Callable) -> dict[str, str]:
    """What a working command line says, but for the command and the folder it writes to."""
    folder = tmp_path_factory.mktemp("evaluation")
    FAMILIES["sd15"]().save_pretrained(folder / "tiny")
    content, style = files("sd15")
    noise = np.random.default_rng(0)
    for lora in (content.stem, style.stem):
        (folder / "references" / lora).mkdir(parents=True)
        pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "references" / lora / "one.png")
    return {
        "model": str(folder / "tiny"), "content": f"{content}=a dog", "style": f"{style}=wet",
        "prompt": "{content}, {style}",
        "steps": "3", "cfg": "4", "size": "32x32", "seed": "7", "device": "cpu", "references": str(folder / "references"),
        **write_encoders(folder),
    }  # fmt: skip


def evaluate(given: dict[str, str], out: Path, **changed: str | None) -> tuple[int, list[dict[str, str]]]:
    """Exit status, and the lines of the CSV."""
    options = given | {"out": str(out)} | changed
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", *value.split("|"))]
    status = main(["evaluate", *words])
    table = out / "evaluation.csv"
    return status, list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []


def scores(rows: list[dict[str, str]], method: str) -> np.ndarray:
    """[seeds, columns]"""
    return np.array([[float(row[column]) for column in COLUMNS] for row in rows if row["method"] == method])


def test_scores_are_those_of_the_images_generate_draws(given: dict, tmp_path: Path, capsys: Any) -> None:
    status, rows = evaluate(given, tmp_path / "out", count="2", methods="klora|direct", alpha="2")
    printed = capsys.readouterr().out
    assert status == 0
    assert (tmp_path / "out" / "evaluation.md").read_text() == printed
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| klora", "| direct"]
    content, style = (Path(given[role].split("=")[0]) for role in ("content", "style"))
    metric = ClipAndDino(given["clip"], given["dino"], Path(given["references"]), torch.device("cpu"))
    for method in ("klora", "direct"):
        own = {k: v for k, v in given.items() if k not in ("references", "clip", "dino")}
        own |= {"content": str(content), "style": str(style), "prompt": "a dog, wet", "out": str(tmp_path / method)}
        words = [word for name, value in own.items() for word in (f"--{name}", value)]
        assert main(["generate", *words, "--count", "2", "--method", method, "--alpha", "2"]) == 0
        paths = [tmp_path / method / f"{content.stem}_{style.stem}_{method}_{seed}.png" for seed in (7, 8)]
        expected = metric.score([Image.open(path).convert("RGB") for path in paths], content.stem, style.stem)
        assert scores(rows, method) == pytest.approx(np.array([expected[c] for c in COLUMNS]).T, abs=2e-6)
    assert np.abs(scores(rows, "klora") - scores(rows, "direct")).max() > 1e-4


def test_seeds_of_a_batch_score_as_alone(given: dict, tmp_path: Path) -> None:
    _, alone = evaluate(given, tmp_path / "alone", count="3", methods="klora")
    _, batch = evaluate(given, tmp_path / "batch", count="3", methods="klora", batch="2")
    assert scores(batch, "klora") == pytest.approx(scores(alone, "klora"), abs=2e-3)
    assert [row["seed"] for row in batch] == ["7", "8", "9"]
    assert len(np.unique(scores(alone, "klora")[:, 0])) == 3


class Shut(io.StringIO):
    """An output whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_table_that_cannot_be_printed_is_written(given: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Shut())
    monkeypatch.setattr(options, "drop_output", lambda: None)
    status, rows = evaluate(given, tmp_path / "out", methods="klora", count="1", steps="1")
    assert status == 141 and len(rows) == 1 and "| klora |" in (tmp_path / "out" / "evaluation.md").read_text()


def test_a_table_that_cannot_be_written_is_printed(
    given: dict, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, data: bytes) -> None:
        raise SettingsError(f"{os.fspath(path)!r} cannot be written: No space left on device")

    monkeypatch.setattr(files, "write_file", full)
    assert evaluate(given, tmp_path / "out", methods="klora", count="1", steps="1") == (2, [])
    heard = capsys.readouterr()
    assert "| klora |" in heard.out and heard.err.endswith("cannot be written: No space left on device\n")


@pytest.mark.parametrize("error", [SettingsError("broke off", "model"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_what_is_scored_is_written_when_a_later_task_fails(
    given: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def run(worker: Worker, task: Task) -> list[ScoredImage]:
        if task.method == "direct":
            raise error
        return [ScoredImage(task.method, "a", "b", seed, {"Style Sim": 0.5}) for seed in task.seeds]

    monkeypatch.setattr(Worker, "run", run)
    status, rows = evaluate(given, tmp_path / "out", count="2", methods="klora|direct")
    assert status != 0 and [row["method"] for row in rows] == ["klora", "klora"]
    assert not (tmp_path / "out" / "evaluation.md").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray, an optional extra, is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_scores(given: dict, tmp_path: Path) -> None:
    _, alone = evaluate(given, tmp_path / "alone", count="2", methods="klora|direct")
    status, spread = evaluate(given, tmp_path / "spread", count="2", methods="klora|direct", ray="local")
    assert status == 0
    assert spread == alone


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"content": None}, "content: no LoRA is given"),
        ({"prompt": None}, "prompt: is needed, with {content} and {style}"),
        ({"prompt": "{subject}"}, "prompt: may have {content} and {style} in braces and nothing else, not '{subject}'"),
        ({"prompt": "{content.upper}, {style}"}, "prompt: may have {content} and {style} in braces and nothing else"),
        ({"prompt": "{content[a]}", "model": "/nowhere"}, "prompt: may have {content} and {style} in braces and nothing"),
        ({"prompt": "{content!r:>9}"}, "prompt: may have {content} and {style} in braces and nothing else"),
        ({"prompt": "a } b"}, "prompt: may have {content} and {style} in braces and nothing else"),
        ({"references": None}, "references: is needed to score images"),
        ({"dino": None}, "dino: is needed to score images"),
        ({"references": "/nowhere"}, "references: there is no picture in"),
        ({"clip": "/nowhere"}, "clip: no model can be loaded from '/nowhere'"),
        ({"methods": "magic"}, "methods: must be some of"),
        ({"batch": "0"}, "batch: must be a whole number from 1"),
        ({"model": "/nowhere"}, "model: there is nothing at '/nowhere'"),
        ({"alpha": "x"}, "alpha: must be a number"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(given: dict, tmp_path: Path, capsys: Any, changed: dict, said: str) -> None:
    status, rows = evaluate(given, tmp_path / "out", **changed)
    told = capsys.readouterr().err.strip().splitlines()
    assert (status, rows, len(told)) == (2, [], 1), told
    assert said in told[0]
    assert not os.path.exists(tmp_path / "out")


def test_no_ray(given: dict, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert evaluate(given, tmp_path / "out", ray="auto") == (2, [])
    assert "ray: Ray is not installed; pip install ray" in capsys.readouterr().err


def test_a_ray_that_says_nothing(given: dict, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=fail))
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace(ActorPool=None))
    assert evaluate(given, tmp_path / "out", ray="auto") == (2, [])
    assert capsys.readouterr().err == "klora: ray: no Ray cluster answers at 'auto' (ConnectionError)\n"


def test_whatever_the_pipeline_raises_is_one_line(
    given: dict, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(StableDiffusionPipeline, "check_inputs", fail)
    assert evaluate(given, tmp_path / "out") == (2, [])
    assert capsys.readouterr().err == "klora: size: there is not enough memory for this model and size\n"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a/dog.safetensors", ("a/dog.safetensors", "")),
        ("dog.safetensors=a dog=b", ("dog.safetensors", "a dog=b")),
        ("rank=16.safetensors", ("rank=16.safetensors", "")),
        ("rank=16.safetensors=a dog", ("rank=16.safetensors", "a dog")),
        ("robot=sks robot", ("robot", "sks robot")),
        ("robot", ("robot", "")),
    ],
)
def test_a_file_and_what_stands_for_it(text: str, read: tuple[str, str]) -> None:
    assert split_words(text) == read


# --- the toy's judge ---


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "content: the toy's judge knows octopus, penguin, rocket, owl, cat, snail, not 'subject'"),
        ({"content": "owl"}, "style: the toy's judge knows lineart, monotone, glossy, retro, cartoon, not 'painter'"),
        ({"content": "retro"}, "content: the toy has no content LoRA 'retro'"),
        ({"content": "owl", "style": "cat"}, "style: the toy has no style LoRA 'cat'"),
        ({"content": "owl", "style": "retro", "size": "32x32"}, "size: the toy's judge looks at images of 128x128 only"),
    ],
    ids=str,
)
def test_what_the_judge_cannot_say(
    given: dict, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, changed: dict, said: str
) -> None:
    """Is told before anything is loaded."""
    (tmp_path / "loras").mkdir()
    for name, role in toy.list_loras().items():
        shutil.copy(given[role].split("=")[0], tmp_path / "loras" / f"{name}.safetensors")
    monkeypatch.setattr(toy, "WEIGHTS", tmp_path)
    monkeypatch.setattr(pipelines, "load_pipeline", None)
    judged = {"model": "toy", "size": "128x128", "references": None, "clip": None, "dino": None}
    assert evaluate(given, tmp_path / "out", **{**judged, **changed}) == (2, [])
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"klora: {said}")
