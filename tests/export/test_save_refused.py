"""What cannot be saved: one sentence, and nothing left or lost on disk."""

from __future__ import annotations

import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from klora_lib.errors import SettingsError
from klora_lib.export import save
from klora_lib.lora.file import lora_file
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import make_pair
from klora_lib.rule.plan import make_plan
from klora_lib.settings import Settings

from ..dialects import dialect_tensors
from ..pairs import as_pair, random_layers
from .saving import read_header, run, write
from .test_segments import plan_pair

# --- what cannot be written ---


def refused(told: str, *args: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(f"klora: {told}\n", err), err


def test_a_file_is_replaced_only_if_told(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fused.safetensors"
    out.write_bytes(b"mine")
    args = (*files, "--out", str(out), "--method", "direct")
    refused("out: 'fused.safetensors' exists already, and is not replaced unless you say so", *args, capsys=capsys)
    assert out.read_bytes() == b"mine"
    assert run(*args, "--overwrite") == 0 and len(out.read_bytes()) > 1000


def test_one_existing_part_refuses_all(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f-2.safetensors").write_bytes(b"mine")
    args = (*files, "--out", str(tmp_path / "f.safetensors"), "--segments", "3")
    refused("out: 'f-2.safetensors' exists already.*", *args, capsys=capsys)
    assert not (tmp_path / "f-1.safetensors").exists() and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("out", "told"), [
    ("fused", r"out: must end in \.safetensors, not 'fused'"),
    ("nowhere/fused.safetensors", r"out: 'fused\.safetensors' is in a folder that does not exist, '.*nowhere'"),
    ("folder.safetensors", r"out: 'folder\.safetensors' is a folder"),
])  # fmt: skip
def test_wrong_paths(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, told: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    refused(told, *files, "--out", str(tmp_path / out), "--method", "direct", capsys=capsys)


@pytest.mark.parametrize(("option", "value", "told"), [
    ("--segments", "0", "segments: must be a whole number from 1 to 32, not '0'"),
    ("--segments", "11", "segments: must be at most the number of steps, 10, not 11"),
    ("--rank", "many", "rank: must be a whole number from 1 to 4096, not 'many'"),
    ("--format", "lycoris", "argument --format: invalid choice: 'lycoris'.*"),
    ("--balance", "9", "balance: must be .*"),
])  # fmt: skip
def test_wrong_values(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    args = (*files, "--out", str(tmp_path / "f.safetensors"), "--steps", "10", option, value)
    refused(told, *args, capsys=capsys)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_space_leaves_nothing(files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three files does not fit on the disk any more."""
    written: list[str] = []

    class Disk(io.BytesIO):
        def write(self, data: Any) -> int:
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            return super().write(data)

    def fill_disk(path: Path, mode: str) -> Any:
        if mode != "xb":
            return open(path, mode)
        written.append(path.name)
        path.write_bytes(b"half of it")
        return Disk()

    monkeypatch.setattr(save, "open", fill_disk, raising=False)
    pair = as_pair(random_layers(0), random_layers(1))
    wish = save.Wish(tmp_path / "f.safetensors", segments=3)
    with pytest.raises(SettingsError, match="out: 'f-2' cannot be written: No space left on device"):
        save.save_parts(pair, plan_pair(), 10, files, wish)
    assert {path.name for path in tmp_path.iterdir()} == {"cat.safetensors", "wash.safetensors"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    args = (*files, "--out", str(folder / "f.safetensors"), "--method", "direct")
    refused("out: 'f' cannot be written: .*", *args, capsys=capsys)


@pytest.mark.parametrize("fails", ["the old file cannot be moved", "the new file cannot"])
def test_a_rename_that_fails_keeps_what_was_there(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    there = {tmp_path / f"f-{n}.safetensors": f"mine {n}".encode() for n in (1, 2, 3)}
    for path, data in there.items():
        path.write_bytes(data)
    replace = os.replace

    def refuse_last(source: Path, path: Path) -> None:
        old = Path(source).name == "f-3.safetensors"
        new = Path(path).name == "f-3.safetensors" and Path(source).read_bytes() != b"mine 3"
        if old if "old" in fails else new:
            raise PermissionError(13, "Permission denied")
        replace(source, path)

    monkeypatch.setattr(os, "replace", refuse_last)
    pair = as_pair(random_layers(0), random_layers(1))
    wish = save.Wish(tmp_path / "f.safetensors", segments=3, overwrite=True)
    with pytest.raises(SettingsError, match=r"out: 'f-3\.safetensors' cannot be written: Permission denied"):
        save.save_parts(pair, plan_pair(), 10, files, wish)
    assert {path: path.read_bytes() for path in there} == there
    assert len(list(tmp_path.iterdir())) == 5


def test_two_saves_at_once_do_not_meet(files: tuple[str, str], tmp_path: Path) -> None:
    pair, plan = as_pair(random_layers(0), random_layers(1)), plan_pair(method="direct")
    wish = save.Wish(tmp_path / "f.safetensors", overwrite=True)
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(save.save_parts, pair, plan, 10, files, wish) for _ in range(12)]
    assert all(each.result().paths == (wish.path,) for each in done)
    assert len(load_file(wish.path)) == 27 and len(list(tmp_path.iterdir())) == 3
    (tmp_path / "any").write_bytes(b"")
    assert wish.path.stat().st_mode == (tmp_path / "any").stat().st_mode, "as any file of the user"


def test_a_source_is_never_replaced(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(files[1]).read_bytes()
    args = (*files, "--out", files[1], "--method", "direct", "--overwrite")
    refused("out: 'wash.safetensors' is one of the two LoRAs that are joined, and is not replaced", *args, capsys=capsys)
    assert Path(files[1]).read_bytes() == before


@pytest.mark.parametrize("name", ["字" * 100, "\ud800", "x\0y"])
def test_a_name_that_no_file_can_have(files: tuple[str, str], tmp_path: Path, name: str) -> None:
    pair = as_pair(random_layers(0), random_layers(1))
    with pytest.raises(SettingsError, match="out: no file can have the name '.*: "):
        save.save_parts(pair, plan_pair(method="direct"), 10, files, save.Wish(tmp_path / f"{name}.safetensors"))


def test_parts_of_the_steps_are_not_by_noise(files: tuple[str, str], tmp_path: Path) -> None:
    pair, plan = as_pair(random_layers(0), random_layers(1)), plan_pair(progress="noise")
    wish = save.Wish(tmp_path / "f.safetensors", segments=3)
    with pytest.raises(SettingsError, match="progress: must be 'steps' for a file for each part of the steps, not 'noise'"):
        save.save_parts(pair, plan, 10, files, wish)


def test_what_a_file_does_not_have_is_told(tmp_path: Path) -> None:
    extra = {"lora_te4_strange.lora_up.weight": torch.ones(2, 2), "bundle_emb.zxc.string_to_param.*": torch.ones(1, 8)}
    content = lora_file(dialect_tensors(random_layers(0), "peft") | extra, "cat", "1")
    style = lora_file(dialect_tensors(random_layers(1), "peft"), "wash", "2")
    for name in ("cat", "wash"):
        write(tmp_path / f"{name}.safetensors", 0)
    pair, chosen = make_pair(content, style), Settings(method="random")
    plan = make_plan(pair, Library().measure(pair, chosen, torch.device("cpu")), chosen, 10, seed=7)
    sources = [tmp_path / "cat.safetensors", tmp_path / "wash.safetensors"]
    saved = save.save_parts(pair, plan, 10, sources, save.Wish(tmp_path / "a=b.safetensors", segments=2))
    assert saved.notes == (
        "1 tensor of 'cat' is of no LoRA dialect that is read, lora_te4_strange.lora_up.weight among them",
        "the 1 embedding in 'cat' (zxc) are not saved",
        "the method random is saved as it is for the seed 7",
        "a prompt's tag cannot hold the name 'a=b-1': a WebUI needs another one",
    )
    assert read_header(saved.paths[0])["klora.seed"] == "7" and read_header(saved.paths[0])["klora.steps"] == "10"


def test_headers_are_bounded(tmp_path: Path) -> None:
    words = json.dumps({"a": {f"word {i}": i for i in range(5000)}, "b": None, "c": {"x": "y"}})
    long = {"modelspec.author": "x" * 1_000_000, "ss_sd_model_name": "y" * 1_000_000, "ss_tag_frequency": words}
    one, two = write(tmp_path / "cat.safetensors", 0, long), write(tmp_path / "wash.safetensors", 1)
    out = tmp_path / "fused.safetensors"
    assert run(one, two, "--out", str(out), "--method", "direct") == 0
    found = read_header(out)
    assert sum(map(len, found.values())) < 20_000
    assert list(json.loads(found["ss_tag_frequency"])["a"])[:2] == ["word 4999", "word 4998"]


def test_a_rename_that_fails_leaves_nothing(files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, done = os.replace, []

    def fail_second(source: Path, path: Path) -> None:
        if done:
            raise PermissionError(13, "Permission denied")
        done.append(path)
        replace(source, path)

    monkeypatch.setattr(os, "replace", fail_second)
    pair = as_pair(random_layers(0), random_layers(1))
    with pytest.raises(SettingsError, match=r"out: 'f-2\.safetensors' cannot be written: Permission denied"):
        save.save_parts(pair, plan_pair(), 10, files, save.Wish(tmp_path / "f.safetensors", segments=3))
    assert {path.name for path in tmp_path.iterdir()} == {"cat.safetensors", "wash.safetensors"}

