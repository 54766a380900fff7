"""Where the text goes: a pipe that is closed, a full disk, letters that the output lacks.  Each run is a process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from klora_lib.cli.main import main

LAYERS = [f"down_blocks.1.attentions.0.transformer_blocks.{i}.attn1.to_q" for i in range(60)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRAs whose plan is a longer text than a pipe's buffer takes."""
    paths = []
    for seed, name in enumerate(("subject", "painter")):
        noise = torch.Generator().manual_seed(seed)
        sides = {"A": (2, 4), "B": (4, 2)}
        tensors = {f"unet.{x}.lora_{s}.weight": torch.randn(*sides[s], generator=noise) for x in LAYERS for s in sides}
        paths.append(str(tmp_path_factory.getbasetemp() / f"{name}.safetensors"))
        save_file(tensors, paths[-1])
    return paths


def start(*words: str, encoding: str = "utf-8", out: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    said = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""}
    return subprocess.Popen([sys.executable, "-m", "klora_lib", *words], stdout=out, stderr=subprocess.PIPE, env=said)


@pytest.mark.parametrize("words", [["--help"], ["plan", "{0}", "{1}"]], ids=" ".join)
def test_a_reader_that_has_enough_ends_the_program_quietly(pair: list[str], words: list[str]) -> None:
    """As `klora plan … | head -1` does: with a text that waits in Python's buffer to the end, and with a longer one."""
    program = start(*(word.format(*pair) for word in words))
    assert program.stdout is not None
    program.stdout.close()
    assert program.communicate()[1] == b"" and program.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("words", [["--version"], ["plan", "{0}", "{1}"]], ids=" ".join)
def test_a_full_disk_is_one_line(pair: list[str], words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        program = start(*(word.format(*pair) for word in words), out=full.fileno())
        told = program.communicate()[1].decode()
    assert told == "klora: the text cannot be written: No space left on device\n" and program.returncode == 2


def test_letters_that_the_output_lacks(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question mark stands for each, and nothing else differs."""
    monkeypatch.setenv("COLUMNS", "100")
    with suppress(SystemExit):
        main(["plan", "--help"])
    whole = capsys.readouterr().out
    with pytest.raises(UnicodeEncodeError):
        whole.encode("cp1252")
    program = start("plan", "--help", encoding="cp1252")
    assert program.communicate() == (whole.encode("cp1252", errors="replace"), b"") and program.returncode == 0
