"""``generate`` and ``compare`` on a saved pipeline: what they write, and that whatever is wrong is one line and exit 2."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from klora_lib import __version__, writing
from klora_lib.cli.main import main, make_parser
from klora_lib.diffusers import klora

from .asking import refused
from .pipes import quiet

LINE = (
    "Steps: 3, Sampler: Euler a, CFG scale: 4.0, Seed: {}, Size: 32x16, Model: tiny, K-LoRA enabled: True, "
    "K-LoRA content: subject, K-LoRA style: painter, K-LoRA alpha: 2.0"
)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_generate(ask: Callable, model: Path, files: Callable, tmp_path: Path, capsys: Any) -> None:
    assert main(ask("generate", count="2", sampler="euler A", alpha="2", negative_prompt="a cat")) == 0
    out, heard = tmp_path / "out", capsys.readouterr()
    stems = [f"subject_painter_klora_{seed}" for seed in (7, 8)]
    assert sorted(os.listdir(out)) == sorted(f"{stem}{end}" for stem in stems for end in (".png", ".txt", "_map.png"))
    for seed, stem in zip((7, 8), stems):
        picture = opened(out / f"{stem}.png")
        text = f"a dog, wet\nNegative prompt: a cat\n{LINE.format(seed)}"
        assert picture.size == (32, 16) and picture.info["parameters"] == text
        assert (out / f"{stem}.txt").read_text() == f"{text}\n"
    assert heard.err == "" and str(out) in heard.out  # no bar in a log
    pipe = quiet(StableDiffusionPipeline.from_pretrained(model))
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with klora(pipe, *files("sd15", text=True), alpha=2):
        ours = pipe(
            "a dog, wet", negative_prompt="a cat", num_inference_steps=3, guidance_scale=4.0, width=32, height=16,
            generator=torch.Generator().manual_seed(7),
        ).images[0]  # fmt: skip
    assert opened(out / f"{stems[0]}.png").tobytes() == ours.tobytes()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_progress(ask: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(ask("generate", count="2")) == 0
    shown = sys.stderr.getvalue()  # type: ignore[union-attr]
    assert "/2 [" in shown and "seed 8, call 3 of 3" in shown


def test_the_version(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"klora {__version__}\n"


def test_every_option_says_what_it_means() -> None:
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    silent = [f"{name} {option.dest}" for name, command in commands.choices.items() for option in command._actions
              if not option.help]  # fmt: skip
    assert silent == []


def test_compare(ask: Callable, tmp_path: Path, capsys: Any) -> None:
    assert main(ask("compare", count="2")) == 0
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["subject_painter_grid.png", "subject_painter_grid.txt"]
    texts = (out / "subject_painter_grid.txt").read_text().strip().split("\n\n")
    found = [re.search(r"K-LoRA method: ([\w-]+)", text) for text in texts]
    methods = [method[1] if method else "klora" for method in found]
    assert methods == [method for method in ("content", "style", "direct", "switch", "klora") for _ in range(2)]
    grid = opened(out / "subject_painter_grid.png")
    assert grid.height > 5 * 128 and 2 * 256 < grid.width < 5 * 256 and grid.getpixel((0, 0)) == (255, 255, 255)
    assert capsys.readouterr().out.strip() == str(out / "subject_painter_grid.png")
    assert main([*ask("compare", count="2"), "--across"]) == 0
    across = opened(out / "subject_painter_grid.png")
    assert across.height < 5 * 128 and across.width > 5 * 256
    assert main(ask("compare", count="1", methods="random,Direct")) == 0
    assert (out / "subject_painter_grid.txt").read_text().count("K-LoRA method") == 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "/nowhere"}, "model: there is nothing at '/nowhere'"),
        ({"content": "gone.safetensors"}, "content: 'gone' does not exist"),
        ({"style": "gone.ckpt"}, "style: 'gone' is a .ckpt file"),
        ({"steps": "many"}, "steps: must be a whole number from 1 to 1000, not 'many'"),
        ({"size": "16"}, "size: must be WIDTHxHEIGHT, multiples of 8"),
        ({"size": "17x16"}, "size: must be WIDTHxHEIGHT, multiples of 8"),
        ({"cfg": "nan"}, "cfg: must be a number from 0 to 100"),
        ({"alpha": "-1"}, "alpha: must be a number from 0"),
        ({"sampler": "DPM fast"}, "sampler: 'DPM fast' is none of this model's: Euler, Euler Karras, Euler a,"),
        ({"device": "tpu9"}, "device: 'tpu9' cannot be used"),
        ({"prompt": None}, "prompt: is needed, with the trigger words of both LoRAs"),
        ({"engine": "merged"}, "engine: must be one of"),
    ],
)
def test_what_is_wrong_is_one_line(changed: dict, sentence: str, ask: Callable, tmp_path: Path, capsys: Any) -> None:
    for command in ("generate", "compare"):
        assert refused(ask(command, **changed), capsys, tmp_path / "out").startswith(sentence)


def test_methods(ask: Callable, tmp_path: Path, capsys: Any) -> None:
    """``generate`` has one, ``compare`` a list of them and nothing beside it."""
    told = refused(ask("generate", method="best"), capsys, tmp_path / "out")
    assert told.startswith("method: must be one of")
    told = refused(ask("compare", methods="best"), capsys, tmp_path / "out")
    assert told.startswith("methods: must be some of")
    parsed = make_parser().parse_args(ask("compare", method="klora"))  # as argparse shortens
    assert parsed.methods == ["klora"] and not hasattr(parsed, "method")


def test_models_that_cannot_be_read(ask: Callable, model: Path, files: Callable, tmp_path: Path, capsys: Any) -> None:
    def told(path: Path) -> str:
        return refused(ask("generate", model=str(path)), capsys, tmp_path / "out")

    (tmp_path / "empty").mkdir()
    assert "it has no model_index.json" in told(tmp_path / "empty")
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    assert "neither a folder nor a .safetensors checkpoint" in told(tmp_path / "old.ckpt")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert "truncated" in told(tmp_path / "half.safetensors")
    assert "is no checkpoint of" in told(files("sd15")[0])
    save_file({"cond_stage_model.weight": torch.ones(1)}, tmp_path / "sd.safetensors")
    assert "cannot be loaded without a download" in told(tmp_path / "sd.safetensors")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    assert "cannot be loaded without a download" in told(tmp_path / "broken")


def test_loras_of_another_architecture(ask: Callable, files: Callable, tmp_path: Path, capsys: Any) -> None:
    content, style = (str(path) for path in files("sdxl"))
    told = refused(ask("generate", content=content, style=style), capsys, tmp_path / "out")
    assert told.startswith("content and style: 'subject' and 'painter' are not made for the model of")


def test_a_folder_that_cannot_be_written(ask: Callable, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a file").write_text("")
    told = refused(ask("generate", out=str(tmp_path / "a file" / "out")), capsys, tmp_path / "out")
    assert told.startswith("out: ") and "cannot be written to: Not a directory" in told


def test_a_full_disk_leaves_nothing_half(
    ask: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    class Full:
        def __init__(self, path: Any, mode: str):
            self.file = open(path, mode)  # noqa: SIM115  closed at exit

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            written.append(self.file.name)
            if len(written) == 2:
                self.file.write(data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

    monkeypatch.setattr(writing, "open", Full, raising=False)
    assert main(ask("generate")) == 2
    assert capsys.readouterr().err.endswith("subject_painter_klora_7.txt' cannot be written: No space left on device\n")
    assert os.listdir(tmp_path / "out") == ["subject_painter_klora_7.png"]


def test_without_diffusers(ask: Callable, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install '.[diffusers]', in the project's folder" in refused(ask("generate"), capsys, tmp_path / "out")
