"""``plan`` and ``plot``: the contract's JSON, the same numbers as the library's, and every fault in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from klora_lib.cli.main import main
from klora_lib.rule.cache import Library
from klora_lib.rule.plan import format_row, make_plan
from klora_lib.settings import Settings

LAYERS = [f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{part}" for part in ("to_q", "to_k", "to_v")]
KEYS = {
    "name", "content_rank", "style_rank", "k", "content_topk_sum", "style_topk_sum", "content_abs_sum", "style_abs_sum",
    "selection",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two LoRAs of ranks 2 and 3 whose strengths differ from layer to layer."""
    paths = []
    for seed, (name, rank) in enumerate({"subject": 2, "painter": 3}.items()):
        noise = torch.Generator().manual_seed(seed)
        tensors = {}
        for i, layer in enumerate(LAYERS):
            tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(rank, 8, generator=noise)
            tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(8, rank, generator=noise) * (1 + i * (1 - seed))
        save_file(tensors, tmp_path / f"{name}.safetensors")
        paths.append(str(tmp_path / f"{name}.safetensors"))
    return paths[0], paths[1]


def test_the_json_is_the_librarys_plan(files: tuple[str, str], capsys: Any) -> None:
    assert main(["plan", *files, "--steps", "7", "--alpha", "2", "--beta", "0.3"]) == 0
    told = json.loads(capsys.readouterr().out)
    library = Library()
    pair = library.pair(*library.read_both(*((path, Path(path).stem) for path in files)))
    plan = make_plan(pair, library.score(pair, "auto", torch.device("cpu")), Settings(alpha=2.0, beta=0.3), 7)
    assert told["steps"] == 7 and told["gamma"] == plan.gamma
    assert [layer["name"] for layer in told["layers"]] == [unit.name for unit in plan.units] == sorted(LAYERS)
    assert all(layer.keys() == KEYS for layer in told["layers"])
    assert [layer["selection"] for layer in told["layers"]] == [format_row(row) for row in plan.table(7)]
    assert {(x["content_rank"], x["style_rank"], x["k"]) for x in told["layers"]} == {(2, 3, 6)}
    assert len({layer["selection"] for layer in told["layers"]}) > 1, "the layers switch at different steps"


def test_a_method_by_energies_tells_energies(files: tuple[str, str], capsys: Any) -> None:
    assert main(["plan", *files, "--steps", "7", "--method", "est"]) == 0
    told = json.loads(capsys.readouterr().out)
    energies = [(layer["content_energy"], layer["style_energy"]) for layer in told["layers"]]
    assert told["gamma"] == pytest.approx(sum(c for c, _ in energies) / sum(s for _, s in energies))
    for (c, s), layer in zip(energies, told["layers"]):
        wanted = ["C" if c >= told["gamma"] * (1.5 * t / 7 + 0.5) * s else "S" for t in range(7)]
        assert layer["selection"] == "".join(wanted) and not any("topk" in name or name == "k" for name in layer)


def test_plot_writes_a_picture(files: tuple[str, str], tmp_path: Path) -> None:
    assert main(["plot", *files, "--out", str(tmp_path / "map.png")]) == 0
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.format == "PNG" and picture.width > 100


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{0}", "{0}"], "klora: style: must be another LoRA than content, both are "),
        (["{0}", "nobody.safetensors"], "klora: style: 'nobody' does not exist"),
        (["{0}", "{1}", "--steps", "0"], "klora: steps: must be a whole number from 1 to 10000, not '0'"),
        (["{0}", "{1}", "--alpha", "x"], "klora: alpha: must be a number from 0 to 1e+09, not 'x'"),
        (["{0}"], "klora: the following arguments are required: STYLE"),
    ],
)
def test_what_is_wrong_is_one_line(files: tuple[str, str], capsys: Any, words: list[str], sentence: str) -> None:
    assert main(["plan", *(word.format(*files) for word in words)]) == 2
    heard = capsys.readouterr()
    assert heard.err.startswith(sentence) and heard.err.count("\n") == 1 and heard.out == ""


def scaled(folder: Path, name: str, size: float) -> str:
    """A LoRA of random numbers of about this size."""
    noise = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in LAYERS:
        tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(2, 8, generator=noise) * size
        tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(8, 2, generator=noise) * size
    save_file(tensors, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def test_numbers_beyond_fp32_are_one_line_and_never_in_the_json(tmp_path: Path, capsys: Any) -> None:
    huge, usual, strong, weak = (scaled(tmp_path, f"x{size:g}", size) for size in (1e30, 1.0, 1e18, 1e-18))
    assert main(["plan", huge, usual]) == 2
    heard = capsys.readouterr()
    assert heard.err.startswith("klora: content: ") and "too large for fp32" in heard.err
    assert heard.err.count("\n") == 1 and heard.out == ""
    assert main(["plan", strong, weak]) == 0
    json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_report_is_text_and_in_the_json_where_asked_for(files: tuple[str, str], capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", *files, "--steps", "7", "--report", "--json", str(out)]) == 0
    text, told = capsys.readouterr().out, json.loads(out.read_text())
    assert text.startswith(f"{told['report']['sentence'].capitalize()}.")
    assert [part["name"] for part in told["report"]["blocks"]] == ["down_blocks.1"] and len(told["layers"]) == len(LAYERS)
    assert main(["plan", *files, "--steps", "7", "--report"]) == 0
    assert capsys.readouterr().out == text
    assert main(["plan", *files, "--steps", "7", "--report", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main(["plan", *files, "--steps", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == {key: value for key, value in told.items() if key != "report"}


def test_scores_are_kept_where_the_environment_says_and_only_there(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("KLORA_CACHE", raising=False)
    before = sorted(tmp_path.iterdir())
    assert main(["plan", *files]) == 0
    alone = capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setenv("KLORA_CACHE", str(tmp_path / "kept"))
    assert main(["plan", *files]) == 0 and capsys.readouterr().out == alone
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr("klora_lib.rule.scoring.score_units", None)
    assert main(["plan", *files]) == 0 and capsys.readouterr().out == alone
