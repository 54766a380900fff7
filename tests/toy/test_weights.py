"""Theorems about what is shipped: all there, small, with its seed and log; the judge and the LoRAs do their work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from klora_lib import toy
from klora_lib.errors import KLoraError
from klora_lib.lora.file import read_lora
from klora_lib.lora.keys import is_attention
from klora_lib.toy import truths
from klora_lib.toy.judge import LOOKS, THINGS
from klora_lib.toy.stage import SEED
from klora_lib.toy.subjects import SUBJECTS, list_truths

# diffusers' Euler makes numpy arrays of tensors in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

LIMIT = 30 << 20  # bytes: 30 MiB


def test_all_of_it_is_small_and_says_how_it_was_made() -> None:
    sizes = {path: path.stat().st_size for path in toy.WEIGHTS.rglob("*") if path.is_file()}
    assert 1_000_000 < sum(sizes.values()) <= LIMIT
    assert str(SEED) in (toy.WEIGHTS / "README.md").read_text(encoding="utf-8")
    log = [json.loads(line) for line in (toy.WEIGHTS / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["stage"] for line in log} >= {"vae", "base", "judge", *(f"lora {name}" for name in toy.list_loras())}
    assert all(line["seconds"] > 0 for line in log)


def test_the_table_of_the_training_is_the_logs() -> None:
    readme = (toy.WEIGHTS / "README.md").read_text(encoding="utf-8")
    log = [json.loads(line) for line in (toy.WEIGHTS / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for stage in dict.fromkeys(line["stage"] for line in log):
        own = [line for line in log if line["stage"] == stage and "loss" in line]
        first, last = own[0], own[-1]
        numbers = f"{last['step']} | {first['loss']:.3f} → {last['loss']:.3f} | {last['seconds'] / 60:.1f} min"
        assert f"| {stage} | {numbers} |" in readme
    checked = next(line for line in log if "subjects" in line)
    assert f"{checked['subjects']:.0%} of the LoRAs' subjects" in readme
    for look in LOOKS:
        assert f"| {look} | {checked[f'style_{look}']:.0%} |" in readme


def test_loras_are_of_two_recipes_and_two_dialects() -> None:
    """Every one is read whole; one recipe has every layer, the other fewer, with an alpha that is not its rank."""
    scales, layers = set(), set()
    for name in toy.list_loras():
        file = read_lora(toy.find_lora(name))
        assert not file.unknown and len(file.modules) >= 56
        scales |= {delta.factors()[2] for delta in file.modules.values()}  # type: ignore[index]
        layers.add(frozenset(file.modules))
    fewer, every = sorted(layers, key=len)
    assert scales == {1.0, 2.0} and fewer < every and any(map(is_attention, fewer))
    firsts = {next(iter(read_raw(toy.find_lora(name)))).partition(".")[0].partition("_")[0] for name in toy.list_loras()}
    assert firsts == {"unet", "lora"}


def read_raw(path: Path) -> list[str]:
    data = path.read_bytes()
    return [key for key in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) if key != "__metadata__"]


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KLoraError, match="no LoRA 'dragon': it has octopus"):
        toy.find_lora("dragon")
    monkeypatch.setattr(toy, "WEIGHTS", tmp_path)
    for ask in (toy.load_pipeline, toy.load_judge, lambda: toy.find_lora("owl")):
        with pytest.raises(KLoraError, match="missing"):
            ask()


def test_the_judge_knows_true_pictures_that_it_has_not_seen() -> None:
    """They are shipped: a subject's own drawing, and what it is in a style whose set has the same drawing."""
    judge, folder = toy.load_judge(), toy.WEIGHTS / "truths"
    pairs = [*list_truths(), *((subject, None) for subject in SUBJECTS)]
    for ground in ("sky", "cream"):
        shown = [truths.place_everywhere(truths.read_truth(folder, *pair), ground) for pair in pairs]
        things, looks = zip(*(judge.score(pictures) for pictures in shown))
        named = [(thing.argmax(1) == THINGS.index(pair[0])).float().mean() for thing, pair in zip(things, pairs)]
        assert torch.stack(named).mean() > 0.85
        styled = [(look.argmax(1) == LOOKS.index(p[1])).float().mean() for look, p in zip(looks, pairs) if p[1]]
        assert torch.stack(styled).mean() > 0.85


def test_a_true_picture_is_most_like_itself() -> None:
    """And not so like another style's of the same subject, or another subject's of the same style."""
    judge, folder = toy.load_judge(), toy.WEIGHTS / "truths"
    placed = {pair: truths.place_everywhere(truths.read_truth(folder, *pair), "sky") for pair in list_truths()}
    shown = torch.cat([mine[13:14] * 0.98 for mine in placed.values()])
    likeness = {other: truths.compare(shown, its, judge) for other, its in placed.items()}
    for n, pair in enumerate(placed):
        for name in ("features", "structure"):
            values = {other: float(found[name][n]) for other, found in likeness.items()}
            assert max(values, key=lambda other: values[other]) == pair and values[pair] > 0.9


# --- sampled ---


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return toy.load_pipeline()


@pytest.fixture(scope="module")
def sample_base(pipe: StableDiffusionPipeline) -> Callable[..., Tensor]:
    """The base model's own pictures, drawn once for each list of prompts: the styles are all shown on the same things."""
    return cache(lambda *prompts: sample(pipe, *prompts))


@pytest.fixture
def with_lora(pipe: StableDiffusionPipeline) -> Iterator[object]:
    """Adds a LoRA's updates to the weights; takes them back at the end."""
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}

    def add(name: str) -> StableDiffusionPipeline:
        for layer, delta in read_lora(toy.find_lora(name)).modules.items():
            weight = pipe.unet.get_submodule(layer).weight
            weight.data += delta.dense().view_as(weight)
        return pipe

    yield add
    pipe.unet.load_state_dict(before)


def sample(pipe: StableDiffusionPipeline, *prompts: str, steps: int = 12) -> Tensor:
    """A picture of each prompt, of the seeds 0…, [n, 3, 128, 128] in 0…1."""
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    given = dict(num_inference_steps=steps, guidance_scale=toy.GUIDANCE, generator=seeds, output_type="pt")
    images: Tensor = pipe(list(prompts), **given).images
    return images


@pytest.mark.parametrize(("thing", "look"), [("house", "noto"), ("apple", "twemoji"), ("star", "emojione"), ("car", None)])
def test_the_base_draws_what_it_is_asked_for(thing: str, look: str | None, pipe: StableDiffusionPipeline) -> None:
    prompts = [toy.write_caption(thing, ground, look) for ground in ("sky", "cream", "mint", "white")]
    things, _ = toy.load_judge().score(sample(pipe, *prompts))
    assert (things.argmax(1) == THINGS.index(thing)).float().mean() >= 0.75


@pytest.mark.parametrize("name", toy.list_loras())
def test_a_lora_brings_its_own(name: str, sample_base: Callable[..., Tensor], with_lora: object) -> None:
    """With it, the judge names its subject or its style; without, at the same prompts and seeds, it does not."""
    if toy.list_loras()[name] == "content":
        prompts = [toy.write_prompt(name, ground=ground) for ground in ("sky", "cream", "white", "mint")]
        which, column = 0, THINGS.index(name)
    else:
        asked = (("apple", "sky"), ("crown", "cream"), ("bus", "rose"), ("car", "mint"))  # that all styles' sets have
        prompts = [toy.write_caption(thing, ground, None) for thing, ground in asked]
        which, column = 1, LOOKS.index(name)
    judge = toy.load_judge()
    without = (judge.score(sample_base(*prompts))[which].argmax(1) == column).float().mean()
    given = (judge.score(sample(with_lora(name), *prompts))[which].argmax(1) == column).float().mean()  # type: ignore[operator]
    assert given >= without + 0.5
