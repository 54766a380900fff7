"""The host's X/Y/Z plot, small: values are confirmed, then each cell is a job of a copy of p, whose errors are hidden."""

from __future__ import annotations

import copy
import itertools
import types
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

from . import processing

AxisInfo = namedtuple("AxisInfo", "axis values")


def format_value_add_label(p: Any, option: Any, value: Any) -> str:
    return f"{option.label}: {value}"


class AxisOption:
    def __init__(
        self,
        label: str,
        type: Any,
        apply: Any,
        format_value: Any = format_value_add_label,
        confirm: Any = None,
        cost: float = 0.0,
        choices: Any = None,
    ):
        self.label, self.type, self.apply, self.format_value = label, type, apply, format_value
        self.confirm, self.cost, self.choices = confirm, cost, choices


class Processed:
    def __init__(self, p: Any, images_list: list[Any], seed: int = -1, info: str = "", infotexts: list[str] | None = None):
        self.images, self.seed, self.infotexts = images_list, seed, infotexts or [info]


def replace_words(p: Any, value: str, values: Sequence[str]) -> None:
    if values[0] not in p.prompt:
        raise RuntimeError(f"Prompt S/R did not find {values[0]}")
    p.prompt = p.prompt.replace(values[0], value)


def make(name: str = "xyz_grid.py") -> types.ModuleType:
    """The plot's module; ``run(p, axes)`` is what its script does."""
    module = types.ModuleType(name)

    def draw_xyz_grid(p: Any, xs: list[Any], ys: list[Any], zs: list[Any], cell: Any) -> Any:
        places = itertools.product(*(list(enumerate(values)) for values in (zs, ys, xs)))
        results = [cell(x, y, z, i, j, k) for (k, z), (j, y), (i, x) in places]
        if not any(result.images for result in results):
            return Processed(p, [])
        images = [result.images[0] if result.images else None for result in results]
        return Processed(p, images, infotexts=[result.infotexts[0] for result in results])

    def read_values(p: Any, option: AxisOption, values: Sequence[str]) -> list[Any]:
        read = [option.type(value) for value in values]
        if option.confirm:
            option.confirm(p, read)
        return read

    def run(p: Any, axes: Sequence[tuple[AxisOption, Sequence[str]]]) -> Any:
        nothing = (AxisOption("Nothing", str, lambda *_: None), [0])
        options, given = zip(*[*axes, nothing, nothing, nothing][:3])
        values = [read_values(p, option, each) for option, each in zip(options, given)]
        for letter, option, each in zip("xyz", options, values):
            setattr(module.state, f"xyz_plot_{letter}", AxisInfo(option, each))
        grid_infotext: list[Any] = [None]

        def cell(x: Any, y: Any, z: Any, ix: int, iy: int, iz: int) -> Any:
            pc = copy.copy(p)
            for option, value, each in zip(options, (x, y, z), values):
                option.apply(pc, value, each)
            try:
                result = module.process_images(pc)
            except Exception as e:  # noqa: BLE001  as the host does
                module.hidden.append(e)
                result = Processed(p, [], p.seed, "")
            if grid_infotext[0] is None:
                grid_infotext[0] = f"{pc.all_prompts[0]}\nSteps: {p.steps}, X Type: {options[0].label}"
            return result

        result = module.draw_xyz_grid(p, xs=values[0], ys=values[1], zs=values[2], cell=cell)
        if result.images:
            result.infotexts[:0] = grid_infotext
        return result

    module.__dict__.update(
        AxisOption=AxisOption,
        axis_options=[AxisOption("Seed", int, None), AxisOption("Prompt S/R", str, replace_words)],
        Processed=Processed,
        process_images=processing.process_images,
        draw_xyz_grid=draw_xyz_grid,
        state=types.SimpleNamespace(),
        hidden=[],
        run=run,
    )
    return module
