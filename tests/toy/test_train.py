"""Theorem: the training script makes what is shipped, part by part, and a run that was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from klora_lib import toy
from klora_lib.lora.file import read_lora
from klora_lib.toy import train, train_base, train_judge, train_loras, train_vae, truths

from .drawn import write_drawings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
STEPS = {train_vae: 2, train_base: 2, train_judge: 2, train_loras: 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(weights, states) of a training of one or two steps a stage on a handful of drawings."""
    out, states = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        for module, steps in STEPS.items():
            patch.setattr(module.train, "__defaults__", (*module.train.__defaults__[:-1], steps))
        patch.setattr(train_vae, "POOL", 12)
        patch.setattr(train_judge, "SOFT", 12)
        patch.setattr(train_base, "VARIANTS", 1)
        patch.setattr(train_loras, "VARIANTS", {"content": 4, "style": 1})
        for module in (train_base, train_loras):
            patch.setattr(module, "BATCH", 2)
            patch.setattr(module, "BASE", {"car": "automobile", "bell": "bell"})
        write_drawings(states)
        train.main(["--out", str(out), "--states", str(states), "--threads", "1"])
    return out, states


def test_what_it_makes_is_what_is_shipped(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "WEIGHTS", made[0])
    image = toy.load_pipeline()("a car on a sky background", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)
    toy.load_judge()
    assert {path.name for path in (made[0] / "truths").iterdir()} == {*truths.list_pictures()}
    shipped = Path(toy.__file__).parent / "weights" / "loras"
    for name in toy.list_loras():
        files = (read_lora(folder / f"{name}.safetensors") for folder in (made[0] / "loras", shipped))
        ours, theirs = ({layer: (d.shape, d.rank) for layer, d in file.modules.items()} for file in files)
        assert ours == theirs
    log = [json.loads(line) for line in (made[0] / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in log} == {"vae", "base", "judge", *(f"lora {name}" for name in toy.list_loras())}


def test_a_stage_goes_on_from_its_state(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps were made: of three, only the third is left."""
    out, states = made
    seen: list[int] = []
    find_rate = train_base.find_rate
    monkeypatch.setattr(train_base, "find_rate", lambda step, *more: seen.append(step) or find_rate(step, *more))
    train_base.train(states, out, steps=3)
    assert seen == [2]


def test_what_is_there_is_not_trained_again(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out, states = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    train.main(["--out", str(out), "--states", str(states), "--threads", "1"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
