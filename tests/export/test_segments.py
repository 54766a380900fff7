"""Theorems of parts of a schedule: each step has one, and the text to paste gives it to that one."""

from __future__ import annotations

import re

import pytest
import torch

from klora_lib.export.segments import describe_use, split_schedule
from klora_lib.rule.cache import Library
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import Settings

from ..pairs import as_pair, random_layers


def plan_pair(steps: int = 10, **settings: object) -> Plan:
    pair = as_pair(random_layers(0), random_layers(1))
    chosen = Settings(**settings)  # type: ignore[arg-type]
    return make_plan(pair, Library().measure(pair, chosen, torch.device("cpu")), chosen, steps)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_segments_share_the_steps_and_have_the_choice_of_their_middle(count: int) -> None:
    plan = plan_pair()
    parts = split_schedule(plan, 10, count)
    assert [step for part in parts for step in range(part.first, part.last)] == list(range(10))
    for i, part in enumerate(parts):
        assert part.last > part.first and (part.number, part.of) == (i + 1, count)
        assert torch.equal(part.masks, plan.at((i + 0.5) / count))


NAMES = ['cat v1.5 "new"-1', "b", "字"]  # PEFT takes no dot in an adapter's name, Python no quotation mark in a string


def weigh_as_loractl(points: str, step: int, steps: int) -> float:
    """loractl's weight at a step: places are shares of ``steps`` if the last is not above 1, else steps."""
    last = max(float(point.split("@")[1]) for point in points.split(","))
    return interpolate(points, step / steps if last <= 1 else step)


def interpolate(points: str, at: float) -> float:
    """The weight at a place, of `weight@place` points joined by lines; of two at one place the later holds from there on."""
    curve = [tuple(map(float, point.split("@"))) for point in points.split(",")]
    if at < curve[0][1]:
        return curve[0][0]
    for (w1, t1), (w2, t2) in zip(curve, curve[1:]):
        if t1 <= at < t2:
            return w1 + (w2 - w1) * (at - t1) / (t2 - t1)
    return curve[-1][0]


@pytest.mark.parametrize("steps", [3, 6, 7, 10, 29, 30])
@pytest.mark.parametrize("count", [2, 3, None])
def test_the_text_to_paste_gives_every_step_to_its_file(count: int | None, steps: int) -> None:
    """None: a part for each step."""
    plan = plan_pair(steps)
    parts = split_schedule(plan, steps, count or steps)
    names = [f"f-{part.number}" for part in parts]
    told = describe_use(names, parts, steps)
    neo = dict(re.findall(r"<lora:(f-\d+):\[(.*?)\]>", told))
    loractl = {name: (te, points) for name, te, points in re.findall(r"<lora:(f-\d+):(\d):(\d@[^>]+)>", told)}
    for name, part in zip(names, parts):
        for step in range(steps):
            inside = part.first <= step < part.last
            assert interpolate(neo[name], step / steps) == inside, (name, step, neo[name])
            assert weigh_as_loractl(loractl[name][1], step, steps) == inside, (name, step, loractl[name])
        assert loractl[name][0] == str(int(part.number == 1))


def test_the_program_for_diffusers_gives_every_step_to_its_file() -> None:
    plan = plan_pair(10)
    parts = split_schedule(plan, 10, 3)
    program = describe_use(NAMES, parts, 10).split("in diffusers:\n")[1]
    drawn: list[str] = []

    class Pipe:
        files: dict[str, str] = {}

        def load_lora_weights(self, path: str, adapter_name: str) -> None:
            self.files[adapter_name] = path

        def set_adapters(self, name: str) -> None:
            self.name = name

        def __call__(self, prompt: str, num_inference_steps: int, callback_on_step_end: object) -> Pipe:
            for step in range(num_inference_steps):
                drawn.append(self.files[self.name])
                callback_on_step_end(self, step, None, {})  # type: ignore[operator]
            return self

        images = ("an image",)

    exec("\n".join(line[2:] for line in program.splitlines()), {"pipe": Pipe(), "prompt": "a cat"})
    assert drawn == [f"{NAMES[part.number - 1]}.safetensors" for part in parts for _ in range(part.first, part.last)]
