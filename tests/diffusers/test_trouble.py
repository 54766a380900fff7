"""What goes wrong on the way, with the paths, in the pipeline, by a person's hand, is one line and nothing half."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from klora_lib.cli import files as cli_files
from klora_lib.cli.main import main
from klora_lib.drawing import pipelines
from klora_lib.drawing.draw import draw_images
from klora_lib.errors import HostError, PairError, SettingsError
from klora_lib.evaluation.metrics import read_pictures

from .asking import refused


def test_paths_that_cannot_be_looked_at(ask: Callable, files: Callable, tmp_path: Path, capsys: Any) -> None:
    """A system's word for it, whichever of the calls it comes from."""
    long = "x" * 300
    told = refused(ask("generate", model=long), capsys, tmp_path / "out")
    assert told.startswith("model: ") and told.endswith("cannot be opened (File name too long)")
    told = refused(ask("generate", out=str(tmp_path / long)), capsys, tmp_path / "out")
    assert told.startswith("out: ") and told.endswith("cannot be written to: File name too long")
    told = refused(ask("generate", content=long), capsys, tmp_path / "out")
    assert told.startswith("content: ")
    told = refused(ask("generate", model="toy", content=long), capsys, tmp_path / "out")
    assert told.startswith("content: ") and told.endswith("cannot be opened (File name too long)")
    with pytest.raises(SettingsError, match=r"references: .* cannot be opened \(File name too long\)"):
        read_pictures(tmp_path / long)


def test_a_folder_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which no test that runs as root could show with a real one."""

    def shut(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", shut)
    monkeypatch.setattr(os, "scandir", shut)
    monkeypatch.setattr(os, "listdir", shut)
    with pytest.raises(SettingsError, match=r"^out: '/closed/out' cannot be written to: Permission denied$"):
        with cli_files.open_folder("/closed/out"):
            pass
    with pytest.raises(SettingsError, match=r"^model: '/closed/model' cannot be opened \(Permission denied\)$"):
        pipelines.read_pipeline("/closed/model", torch.float32)
    with pytest.raises(SettingsError, match=r"^references: '/closed/dog' cannot be opened \(Permission denied\)$"):
        read_pictures(Path("/closed/dog"))


def test_a_disk_full_from_the_start_keeps_no_new_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(SettingsError, match="^out: .* cannot be written to: No space left on device$"):
        with cli_files.open_folder(str(tmp_path / "new" / "out")):
            pass
    assert os.listdir(tmp_path) == []


def test_the_probe_leaves_nothing(tmp_path: Path) -> None:
    with cli_files.open_folder(str(tmp_path / "out")) as out:
        assert os.listdir(out) == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\nlines"), "the StableDiffusionPipeline cannot draw this: two"),
        (KeyError(), "the StableDiffusionPipeline cannot draw this: KeyError"),
        (MemoryError(), "size: there is not enough memory for this model and size"),
        (torch.cuda.OutOfMemoryError("CUDA"), "size: there is not enough memory for this model and size"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you"), "size: there is not enough memory for this"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "size: there is not enough memory for this"),
        (PairError("these two do not fit", "style"), "style: these two do not fit"),
    ],
    ids=repr,
)
def test_whatever_a_pipeline_raises_is_one_line(
    error: Exception, sentence: str, ask: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(StableDiffusionPipeline, "check_inputs", fail)
    assert refused(ask("generate"), capsys, tmp_path / "out").startswith(sentence)


def test_the_cause_is_kept() -> None:
    cause = ValueError("x")

    def pipe() -> None:
        raise cause

    with pytest.raises(HostError) as raised:
        draw_images(pipe, nullcontext())
    assert raised.value.__cause__ is cause


def test_stopped(ask: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    assert main(ask("generate")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "klora: stopped"
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_works_on_a_picture(ask: Callable, model: Path, tmp_path: Path, capsys: Any) -> None:
    index = json.loads((model / "model_index.json").read_text())
    for kind in ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"):
        folder = tmp_path / kind
        shutil.copytree(model, folder)
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
        told = refused(ask("generate", model=str(folder)), capsys, tmp_path / "out")
        assert told == f"model: {str(folder)!r} is a {kind}, which draws nothing without a picture"
