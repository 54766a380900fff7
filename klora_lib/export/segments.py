"""A schedule in parts: for a method that changes its choice from step to step, a file for each part of the steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..errors import SettingsError
from ..rule.plan import Plan

MOST = 32  # files for one schedule
FINE = 100_000  # shares of the steps are written in parts of it


class Segment(NamedTuple):
    """Steps [first, last), and the choice in the middle of them.  number: from 1 on, of ``of``."""

    number: int
    of: int
    first: int
    last: int
    masks: Tensor  # uint8 [units]


def split_schedule(plan: Plan, steps: int, count: int | None) -> list[Segment]:
    """The parts of a schedule of ``steps``.  ``count``: how many; None for one that holds for all steps.

    Raises SettingsError if None is given and the choice changes, or if there are more parts than steps.
    """
    if count is None:
        table = plan.table(steps)
        if not bool((table == table[:, :1]).all()):
            raise SettingsError(
                f'{plan.settings.method!r} changes its choice from step to step, and one file cannot: take "average", '
                "K-LoRA averaged over the steps, or save a file for each of several parts of the steps (segments)",
                "method",
            )
        return [Segment(1, 1, 0, steps, table[:, 0])]
    if count > steps:
        raise SettingsError(f"must be at most the number of steps, {steps}, not {count}", "segments")
    edges = [math.ceil(steps * i / count) for i in range(count + 1)]
    return [Segment(i + 1, count, edges[i], edges[i + 1], plan.at((i + 0.5) / count)) for i in range(count)]


def describe_use(names: Sequence[str], segments: Sequence[Segment], steps: int) -> str:
    """The text to paste for drawing with the files by step, for the programs that can.

    Args: names: of the files, without their endings.  The text encoders' part is in the first file alone.
    """
    if len(names) == 1:
        return f"use it as <lora:{names[0]}:1>\n"
    neo = " ".join(f"<lora:{name}:[{make_curve(each, steps)}]>" for name, each in zip(names, segments))
    loractl = " ".join(
        f"<lora:{name}:{int(each.number == 1)}:{make_steps(each, steps)}>" for name, each in zip(names, segments)
    )
    return (
        f"in Forge Neo, with LoRAs on the fly:\n  {neo}\n"
        f"in AUTOMATIC1111 with sd-webui-loractl, for {steps} steps:\n  {loractl}\n"
        "in ComfyUI with prompt control (shares of the steps; change them for a scheduler like Karras):\n"
        f"  <lora:{names[0]}:0:1>{nest(names, segments, steps)}\n"
        f"in diffusers:\n{indent(make_program(names, segments, steps))}"
    )


def make_curve(segment: Segment, steps: int) -> str:
    """`0@0,0@0.33,1@0.33,1@0.67,0@0.67,0@1`: weights at shares of the steps, with a jump where two share a place."""
    first, last = (format_share(step, steps) for step in (segment.first, segment.last))
    before = [] if segment.first == 0 else ["0@0", f"0@{first}"]
    after = [] if segment.last == steps else [f"0@{last}", "0@1"]
    return ",".join([*before, f"1@{first}", f"1@{last}", *after])


def make_steps(segment: Segment, steps: int) -> str:
    """`0@0,0@9,1@10,1@19,0@20`: weights at steps, between which the program draws a line."""
    before = [] if segment.first == 0 else ["0@0", f"0@{segment.first - 1}"]
    after = [] if segment.last == steps else [f"0@{segment.last}"]
    points = [*before, f"1@{segment.first}", f"1@{segment.last - 1}", *after]
    if not after or segment.last < 2:  # if no place is above 1, the program takes them as shares of the steps
        points.append(f"{0 if after else 1}@{max(steps, 2)}")
    return ",".join(dict.fromkeys(points))


def nest(names: Sequence[str], segments: Sequence[Segment], steps: int) -> str:
    """`[<lora:a:1:0>:[<lora:b:1:0>:<lora:c:1:0>:0.67]:0.33]`"""
    tag = f"<lora:{names[0]}:1:0>"
    if len(names) == 1:
        return tag
    return f"[{tag}:{nest(names[1:], segments[1:], steps)}:{format_share(segments[0].last, steps)}]"


def make_program(names: Sequence[str], segments: Sequence[Segment], steps: int) -> str:
    files = [json.dumps(f"{name}.safetensors", ensure_ascii=False) for name in names]
    lines = [f'pipe.load_lora_weights({file}, adapter_name="part_{i}")' for i, file in enumerate(files, 1)]
    last = ", ".join(f'({each.last}, "part_{each.number}")' for each in segments)
    return "\n".join([
        *lines,
        f"parts = [{last}]  # of {steps} steps",
        "def choose(pipe, step, timestep, tensors):",
        "    name = next((name for last, name in parts if step + 1 < last), parts[-1][1])",
        "    pipe.set_adapters(name)",
        "    return tensors",
        'pipe.set_adapters("part_1")',
        f"image = pipe(prompt, num_inference_steps={steps}, callback_on_step_end=choose).images[0]",
    ])  # fmt: skip


def format_share(step: int, steps: int) -> str:
    """step/steps, rounded down: rounded up, the step itself would still be before it."""
    return f"{math.floor(step / steps * FINE) / FINE:g}"


def indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
