"""Theorems of saving: all files or none, never over another's, and a header that says where they are from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from klora_lib.export.segments import split_schedule
from klora_lib.lora.file import read_lora

from .saving import read_header, run, write
from .test_segments import plan_pair

# --- one file ---


def test_a_file_and_how_to_use_it(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fused.safetensors"
    assert run(*files, "--out", str(out), "--method", "direct") == 0
    told = capsys.readouterr()
    assert told.out == f"saved {out} ({out.stat().st_size / 1e6:.1f} MB)\nuse it as <lora:fused:1>\n" and told.err == ""
    one, two, both = (read_lora(path) for path in (*files, out))
    for layer, delta in both.modules.items():
        assert torch.allclose(delta.dense(), one.modules[layer].dense() + two.modules[layer].dense(), atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"cat.safetensors", "wash.safetensors", "fused.safetensors"}


def test_the_weights_are_inside(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "fused.safetensors"
    assert run(*files, "--out", str(out), "--method", "content", "--content-weight", "0.5", "--content-te-weight", "2") == 0
    one, got = read_lora(files[0]), read_lora(out)
    assert all(torch.allclose(got.modules[layer].dense(), delta.dense() / 2) for layer, delta in one.modules.items())
    up, down = (got.text[f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{x}.weight"] for x in ("up", "down"))
    # method content is about the denoiser: text encoders see no step, and carry both
    assert torch.allclose(up.float() @ down.float(), torch.full((6, 6), 2 * 2.0 + 2.0))


def test_a_header_says_where_it_is_from(tmp_path: Path) -> None:
    one = write(tmp_path / "cat.safetensors", 0, {
        "ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "zxc cat", "ss_sd_model_name": "a",
        "ss_tag_frequency": json.dumps({"10_cat": {"zxc cat": 10}}), "modelspec.license": "MIT",
    })  # fmt: skip
    two = write(tmp_path / "wash.safetensors", 1, {
        "ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "wash style", "ss_sd_model_name": "b",
        "ss_tag_frequency": json.dumps({"10_cat": {"wash": 3}}), "modelspec.license": "CC0", "ss_network_dim": "99",
    })  # fmt: skip
    out = tmp_path / "fused.safetensors"
    assert run(one, two, "--out", str(out), "--method", "np", "--mu", "2", "--style-weight", "0.5") == 0
    found = read_header(out)
    assert found["ss_base_model_version"] == "sd_v1" and "ss_sd_model_name" not in found
    assert found["modelspec.trigger_phrase"] == "zxc cat, wash style" and found["modelspec.license"] == "MIT, CC0"
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"zxc cat": 10}, "10_cat (wash)": {"wash": 3}}
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "4"
    assert found["klora.content"] == "cat" and found["klora.style"] == "wash"
    assert found["klora.style_sha256"] == hashlib.sha256(Path(two).read_bytes()).hexdigest()
    assert json.loads(found["klora.settings"]) == {
        "content": "cat", "style": "wash", "method": "np", "mu": 2.0, "style_weight": 0.5,
    }  # fmt: skip
    assert "trigger words: zxc cat, wash style" in found["modelspec.description"]


def test_damaged_tables_of_words_are_left_out(tmp_path: Path) -> None:
    one = write(tmp_path / "cat.safetensors", 0, {"ss_tag_frequency": "{"})
    two = write(tmp_path / "wash.safetensors", 1, {"ss_tag_frequency": "[1]"})
    out = tmp_path / "fused.safetensors"
    assert run(one, two, "--out", str(out), "--method", "direct") == 0
    assert "ss_tag_frequency" not in read_header(out)


def test_files_are_written_the_same_twice(files: tuple[str, str], tmp_path: Path) -> None:
    outs = [tmp_path / name / "fused.safetensors" for name in ("a", "b")]
    for out in outs:
        out.parent.mkdir()
        assert run(*files, "--out", str(out), "--method", "ties") == 0
    one, two = (load_file(out) for out in outs)
    assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys())


# --- several ---


def test_what_switches_is_no_one_file(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*files, "--out", str(tmp_path / "fused.safetensors")) == 2
    told = capsys.readouterr().err
    assert told.startswith("klora: method: 'klora' changes its choice from step to step, and one file cannot: take")
    assert len(list(tmp_path.iterdir())) == 2
    assert len(split_schedule(plan_pair(alpha=0.0), 10, None)) == 1, "a choice that stays is one file"


def test_the_files_of_a_schedule(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fused.safetensors"
    assert run(*files, "--out", str(out), "--segments", "3", "--steps", "12") == 0
    parts = [tmp_path / f"fused-{n}.safetensors" for n in (1, 2, 3)]
    assert all(path.exists() for path in parts) and not out.exists()
    assert [bool(read_lora(path).text) for path in parts] == [True, False, False]
    assert [read_header(path)["klora.segment"] for path in parts] == [
        "1 of 3, steps 1 to 4", "2 of 3, steps 5 to 8", "3 of 3, steps 9 to 12",
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "<lora:fused-2:[0@0,0@0.33333,1@0.33333,1@0.66666,0@0.66666,0@1]>" in told
    assert "<lora:fused-1:0:1>[<lora:fused-1:1:0>:[<lora:fused-2:1:0>:<lora:fused-3:1:0>:0.66666]:0.33333]" in told
