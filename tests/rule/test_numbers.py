"""Theorems at the ends of fp32 and of memory: a pair has numbers, or is refused by what is wrong with them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from klora_lib.errors import LoraFileError, PairError
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.rule import scoring
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS = [f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{part}" for part in ("to_q", "to_k", "to_v")]
KINDS = {
    "lora": {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8)},
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
    "lokr": {"lokr_w1": (2, 2), "lokr_w2": (4, 4)},
}


def tensors(kind: str, size: float, seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        f"unet.{layer}.{part}": torch.randn(shape, generator=noise) * size
        for layer in LAYERS
        for part, shape in KINDS[kind].items()
    }


def file(kind: str, size: float, name: str, seed: int = 0) -> LoraFile:
    return lora_file(tensors(kind, size, seed), name, name)


def plan_of(pair: Pair, **settings: Any) -> Any:
    return make_plan(pair, score_units(pair.units, "auto", CPU), Settings(**settings), 10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["content", "style"])
def test_an_update_too_large_for_fp32_is_refused_by_role_and_layer(kind: str, role: str) -> None:
    pair = [file("lora", 1, "subject"), file("lora", 1, "painter", 1)]
    pair[role == "style"] = file(kind, 1e30, "huge")
    with pytest.raises(LoraFileError) as refusal:
        plan_of(make_pair(*pair))
    assert str(refusal.value).startswith(f"{role}: {min(LAYERS)} cannot be used: its update is too large for fp32, with ")


def test_elements_that_fit_and_a_sum_that_does_not() -> None:
    """2e38 fits, sixty-four of them do not add up."""
    huge = {k: torch.ones_like(v) * (2e19 if "up" in k else 1e19) / 2**0.5 for k, v in tensors("lora", 1).items()}
    with pytest.raises(LoraFileError, match="too large for fp32"):
        plan_of(make_pair(lora_file(huge, "huge", "huge"), file("lora", 1, "painter")))


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_too_small_for_fp32_is_told_from_an_untrained_one(kind: str) -> None:
    pair = make_pair(file("lora", 1, "subject"), file(kind, 1e-24, "tiny"))
    with pytest.raises(PairError, match="style: 'tiny' is zero in fp32 in all 3 layers .*: its numbers are too small"):
        plan_of(pair)
    untrained = {k: torch.zeros_like(v) if "up" in k else v for k, v in tensors("lora", 1).items()}
    with pytest.raises(PairError, match="style: 'new' is zero in all 3 layers .*; was it trained?"):
        plan_of(make_pair(file("lora", 1, "subject"), lora_file(untrained, "new", "new")))


@pytest.mark.parametrize("gamma", ["auto", "mean-ratio"])
@pytest.mark.parametrize(("content", "style"), [(1e18, 1e-18), (1e-18, 1e18), (1e18, 1e18)])
def test_gamma_is_finite_for_whatever_is_accepted(gamma: str, content: float, style: float) -> None:
    plan = plan_of(make_pair(file("lora", content, "subject"), file("lora", style, "painter", 1)), gamma=gamma)
    assert 0 < plan.gamma < math.inf


# --- memory ---


@pytest.fixture
def pair() -> Pair:
    return make_pair(file("lora", 1, "subject"), file("loha", 1, "painter", 1))


def full(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> list[str]:
    """Devices of these kinds have no memory left.  Returns where scoring was tried."""
    tried, original = [], scoring.score_units_on

    def score_on(units: Any, k: Any, device: torch.device, *rest: Any) -> Any:
        tried.append(device.type)
        if device.type in kinds:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(units, k, CPU, *rest)

    monkeypatch.setattr(scoring, "score_units_on", score_on)
    return tried


def test_scoring_goes_on_on_the_cpu(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = score_units(pair.units, "auto", CPU)
    tried = full(monkeypatch, "cuda")
    assert torch.equal(score_units(pair.units, "auto", CUDA).content_topk, wanted.content_topk) and tried == ["cuda", "cpu"]


def test_a_device_without_room_is_not_tried(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = full(monkeypatch)
    needed = scoring.PRODUCTS * 4 * max(unit.elements for unit in pair.units)
    score_units(pair.units, "auto", CUDA, free=needed - 1)
    score_units(pair.units, "auto", CUDA, free=needed)
    assert tried == ["cpu", "cuda"]


def test_no_memory_anywhere_is_a_sentence(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, "cuda", "cpu")
    with pytest.raises(PairError, match="there is no memory to compare the two LoRAs: 0 MB are needed for down_blocks"):
        score_units(pair.units, "auto", CUDA)


def test_another_error_is_not_taken_for_one_of_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(scoring, "score_units_on", broken)
    with pytest.raises(RuntimeError, match="assert"):
        score_units(pair.units, "auto", CUDA)
