"""Theorems: two LoRAs without a common layer (B-LoRA's content and style halves) each act on their own layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klora_lib.cli.main import main
from klora_lib.errors import PairError

from ..pairs import ATTENTION, OTHERS, random_layers, scaled, write_file
from .test_plan import ANYWHERE, CONTENT, STYLE, plan_of, rows

HALVES = random_layers(1, ATTENTION), random_layers(2, OTHERS, rank=3)


@pytest.mark.parametrize("layers", ["all", "attention"])
@pytest.mark.parametrize("method", ANYWHERE)
def test_without_a_common_layer_each_layer_has_the_lora_that_touches_it(method: str, layers: str) -> None:
    plan = plan_of(*HALVES, method=method, layers=layers)
    got = rows(plan)
    own = {"content": ("C", "N"), "style": ("N", "S"), "switch": ("CN", "NS")}.get(method, ("C", "S"))
    assert all(set(got[name]) == set(own[0]) for name in ATTENTION) and all(set(got[n]) == set(own[1]) for n in OTHERS)
    assert len(plan.notes) == 1 and "no denoiser layer in common" in plan.notes[0]


def test_without_a_common_layer_gamma_is_one_unless_it_is_given() -> None:
    assert [plan_of(*HALVES, gamma=gamma).gamma for gamma in ("auto", "mean-ratio", 0.25)] == [1.0, 1.0, 0.25]
    assert plan_of(CONTENT, STYLE).notes == []


def test_without_a_common_layer_neither_lora_may_vanish() -> None:
    with pytest.raises(PairError, match="style: 'painter' has no attention layer, and layers is 'attention-only'"):
        plan_of(*HALVES, layers="attention-only")
    with pytest.raises(PairError, match=f"content: 'subject' is zero in all its {len(ATTENTION)} layers; was it trained"):
        plan_of(scaled(HALVES[0], 0.0), HALVES[1])


def test_the_command_plan_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("subject", "painter")]
    for path, half in zip(paths, HALVES):
        write_file(half, path)
    assert main(["plan", *map(str, paths)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["gamma"] == 1.0
    assert said.err.count("\n") == 1 and "no denoiser layer in common" in said.err
