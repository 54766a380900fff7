"""``--model toy``, which brings its own model, LoRAs and habits."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

import klora_lib.toy
from klora_lib.cli.main import main
from klora_lib.drawing import pipelines
from klora_lib.errors import KLoraError
from klora_lib.toy.judge import Judge, write_judge

from .asking import refused
from .pipes import FAMILIES


def stand_in(files: Callable) -> SimpleNamespace:
    """The toy world's face, with a random model behind it."""
    pair = dict(zip(("subject", "painter"), files("sd15")))

    def pipeline() -> Any:
        assert diffusers.utils.logging.get_verbosity() == 50  # the command's own bar and errors are all that is heard
        return FAMILIES["sd15"]()

    return SimpleNamespace(
        load_pipeline=pipeline,
        find_lora=lambda name, role=None: pair[name],
        list_loras=lambda: {"subject": "content", "painter": "style"},
        write_prompt=lambda content: f"a {content}",
        STEPS=2,
        GUIDANCE=1.5,
    )


def test_the_toy_by_name(
    ask: Callable, files: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(klora_lib, "toy", stand_in(files), raising=False)
    given = {"model": "toy", "content": "subject", "style": "painter", "steps": None, "cfg": None, "prompt": None}
    assert main(ask("generate", **given)) == 0
    text = (tmp_path / "out" / "subject_painter_klora_7.txt").read_text()
    assert text.startswith("a subject\nSteps: 2, Sampler: DDIM, CFG scale: 1.5,") and "Model: toy" in text
    assert main(ask("compare", **given, methods="klora", count="1")) == 0
    assert (tmp_path / "out" / "subject_painter_grid.txt").read_text() == text


def test_the_toys_names_come_before_files(
    ask: Callable, files: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(klora_lib, "toy", stand_in(files), raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("subject", "own"):
        Path(name).write_text("no LoRA")
    assert pipelines.find_lora("subject", "toy", "content") == files("sd15")[0]
    assert pipelines.find_lora("subject", "other", "content") == Path("subject")
    assert pipelines.find_lora("own", "toy", "content") == Path("own")
    assert pipelines.find_lora("own.safetensors", "toy", "content") == Path("own.safetensors")


def test_the_toys_loras_have_a_role(ask: Callable, tmp_path: Path, capsys: Any) -> None:
    for command in ("generate", "compare"):
        told = refused(ask(command, model="toy", content="lineart", style="cat"), capsys, tmp_path / "out")
        assert told == "content: the toy has no content LoRA 'lineart': it has octopus, penguin, rocket, owl, cat, snail"


def test_a_toy_that_is_damaged(
    ask: Callable, model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither diffusers nor transformers says a word of their own."""
    weights = tmp_path / "weights"
    shutil.copytree(model, weights)
    monkeypatch.setattr(klora_lib.toy, "WEIGHTS", weights)
    whole = (weights / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    (weights / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refused(ask("generate", model="toy"), capsys, tmp_path / "out").startswith("the toy's weights cannot be loaded (")
    (weights / "model_index.json").unlink()
    assert refused(ask("generate", model="toy"), capsys, tmp_path / "out").startswith("the toy's weights cannot be loaded (")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "needs diffusers and transformers" in refused(ask("generate", model="toy"), capsys, tmp_path / "out")
    with pytest.raises(KLoraError, match="the toy needs diffusers and transformers"):
        klora_lib.toy.load_pipeline()


def test_a_judge_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(klora_lib.toy, "WEIGHTS", tmp_path)
    path = tmp_path / "judge.safetensors"
    write_judge(Judge(), path)
    klora_lib.toy.load_judge()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KLoraError, match="^the toy's judge cannot be loaded "):
        klora_lib.toy.load_judge()
    save_file({"shape.0.weight": torch.zeros(1)}, path)
    with pytest.raises(KLoraError, match="^the toy's judge cannot be loaded "):
        klora_lib.toy.load_judge()


def test_without_the_toy(ask: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(klora_lib, "toy", raising=False)
    monkeypatch.setitem(sys.modules, "klora_lib.toy", None)
    told = refused(ask("generate", model="toy"), capsys, tmp_path / "out")
    assert told == "model: the toy model is not part of this installation"
