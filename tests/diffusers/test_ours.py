"""Theorems: every step of a pipeline's call was ours, or the call ends with a sentence instead of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from klora_lib.diffusers import klora
from klora_lib.errors import HostError

from .loras import differing, snapshot
from .pipes import calls_of, denoiser, image


@pytest.fixture
def job(make: Callable, files: Callable) -> tuple[Any, tuple[Any, Any]]:
    return make("sd15"), files("sd15", only="attn")


def test_a_hook_that_was_taken_away_is_no_image(job: tuple[Any, tuple[Any, Any]]) -> None:
    pipe, pair = job
    before = snapshot(pipe)
    with klora(pipe, *pair):
        denoiser(pipe)._forward_pre_hooks.clear()
        with pytest.raises(HostError, match="the pipeline made 3 scheduler steps, and K-LoRA was told of 0 of them"):
            image(pipe, steps=3)
    assert differing(before, snapshot(pipe)) == []


def test_steps_of_another_denoiser_are_no_image(job: tuple[Any, tuple[Any, Any]]) -> None:
    """A pipeline with two of them (high noise, low noise) changes over in the middle."""
    pipe, pair = job
    model, heard = denoiser(pipe), []

    def look(place: int, places: int) -> None:
        heard.append(place)
        if place == 2:
            model._forward_pre_hooks.clear()

    with klora(pipe, *pair, callback=look):
        with pytest.raises(HostError, match="the pipeline made 4 scheduler steps, and K-LoRA was told of 2 of them"):
            image(pipe, steps=4)
    assert heard == [1, 2]


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_what_somebody_else_rewrote_is_no_image(job: tuple[Any, tuple[Any, Any]], engine: str) -> None:
    pipe, pair = job
    layer = denoiser(pipe).mid_block.attentions[0].transformer_blocks[0].attn1.to_q

    def meddle(place: int, places: int) -> None:
        if place == 3:
            with torch.no_grad():
                layer.weight.mul_(1)
            layer._forward_hooks.clear()

    with klora(pipe, *pair, engine=engine, callback=meddle), pytest.raises(HostError, match="rewrote 1 layer of .* mid_b"):
        image(pipe, steps=4)


def test_a_pass_that_the_caller_stops_is_no_fault(job: tuple[Any, tuple[Any, Any]]) -> None:
    pipe, pair = job

    def stop(pipe: Any, step: int, timestep: Any, given: dict) -> dict:
        pipe._interrupt = step == 1
        return given

    with klora(pipe, *pair) as run:
        image(pipe, steps=4, callback_on_step_end=stop)
    assert calls_of(run) == [2]


def test_the_scheduler_is_its_own_again(job: tuple[Any, tuple[Any, Any]]) -> None:
    pipe, pair = job
    before = dict(vars(pipe.scheduler))
    with klora(pipe, *pair):
        image(pipe, steps=2)
        assert "step" not in vars(pipe.scheduler)
    assert vars(pipe.scheduler).keys() >= before.keys() and "step" not in vars(pipe.scheduler)
