"""Theorems of the XYZ plot: one axis a setting, added once, refused as a whole; every cell is drawn with its own values."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fastapi import HTTPException

from klora_lib import infotext
from klora_lib.settings import FIELDS, Settings, read_settings
from klora_lib.webui import boot, xyz

from ..fakes.host import FakeHost, ScriptData
from ..fakes.plot import AxisOption
from ..fakes.processing import Processing, process_images
from .jobs import job, plain, untouched, weights


@pytest.fixture
def grid(host: FakeHost) -> types.ModuleType:
    """The host's plot script, whose module is named after its file."""
    module = types.ModuleType("xyz_grid.py")
    module.AxisOption, module.axis_options = AxisOption, [AxisOption("Seed", int, None)]  # type: ignore[attr-defined]
    script = type("Script", (), {"__module__": "xyz_grid.py"})
    host.scripts.scripts_data.append(
        ScriptData(type("Other", (), {"__module__": "other.py"}), "", "", types.ModuleType("other.py"))
    )
    host.scripts.scripts_data.append(ScriptData(script, "", "", module))
    for callback in host.script_callbacks.registered["before_ui"]:
        callback()
    return module


def option(grid: types.ModuleType, name: str) -> AxisOption:
    return next(o for o in grid.axis_options if o.label == f"K-LoRA {name}")


def plot(p: Processing, axes: Sequence[tuple[AxisOption, Sequence[Any]]]) -> list[Processing]:
    """Two axes at most, as the host runs them: confirmed first, then a shallow copy of p a cell, y after x."""
    axes = [(o, [o.type(v) for v in values]) for o, values in axes]
    for o, values in axes:
        o.confirm(p, values)
    (x, xs), (y, ys) = [*axes, (AxisOption("Nothing", str, lambda *_: None), [0])][:2]
    cells = []
    for one in xs:
        for two in ys:
            cell = copy.copy(p)
            x.apply(cell, one, xs)
            y.apply(cell, two, ys)
            cell.images = process_images(cell).images  # type: ignore[attr-defined]
            cell.written = dict(cell.extra_generation_params)  # type: ignore[attr-defined]
            cells.append(cell)
    return cells


def test_one_axis_a_setting(grid: types.ModuleType) -> None:
    assert [o.label for o in grid.axis_options] == ["Seed", *(f"K-LoRA {f.name}" for f in FIELDS), xyz.COMPARE]
    assert all(o.label == f.infotext for o, f in zip(grid.axis_options[1:], FIELDS))


def test_adding_twice_adds_once(grid: types.ModuleType, host: FakeHost) -> None:
    before = list(grid.axis_options)
    boot.add_axes(host.app)
    assert grid.axis_options == before


def test_a_host_without_the_plot_is_fine(host: FakeHost) -> None:
    boot.add_axes(host.app)


def test_choices(grid: types.ModuleType, host: FakeHost) -> None:
    assert option(grid, "content").choices() == sorted(host.networks.available_networks)
    assert option(grid, "method").choices()[0] == "klora" and option(grid, "alpha").choices is None


GOOD = {
    "enabled": ["True", "false"], "content": ["subject"], "style": ["style", "style_full"], "method": ["klora", "topk"],
    "gamma": ["auto", "0.5"], "k": ["auto", "4"], "scale": ["s", "s*"], "layers": ["all"], "progress": ["noise"],
    "engine": ["merge"], "show_map": ["True"], "alpha": ["1", "2.5"], "beta": ["0"], "switch_every": ["3"],
    "balance": ["-1.5"], "hires": ["off", "own"], "hires_balance": ["1"], "mu": ["0", "8"], "density": ["0.5"],
    "content_weight": ["-1"], "style_weight": ["0"], "content_te_weight": ["0.5"], "style_te_weight": ["1"],
}  # fmt: skip
BAD = {
    "enabled": ["maybe"], "content": ["nobody"], "style": ["nobody"], "method": ["merge"], "gamma": ["0"], "k": ["0.5"],
    "scale": ["t"], "layers": ["none"], "progress": ["time"], "engine": ["fast"], "show_map": ["?"], "alpha": [-1],
    "beta": [-1], "switch_every": [0], "balance": [4], "hires": ["on"], "hires_balance": [-4], "mu": [-1],
    "density": [0], "content_weight": [101], "style_weight": [float("inf")],
    "content_te_weight": [-101], "style_te_weight": [float("nan")],
}  # fmt: skip


def test_every_setting_is_tried_below() -> None:
    assert GOOD.keys() == BAD.keys() == {f.name for f in FIELDS}


@pytest.mark.parametrize("name", GOOD)
def test_good_values_reach_the_settings(grid: types.ModuleType, host: FakeHost, name: str) -> None:
    axis, p = option(grid, name), plain(host)
    values = [axis.type(v) for v in GOOD[name]]
    axis.confirm(p, values)
    for value in values:
        cell = copy.copy(p)
        axis.apply(cell, value, values)
        got = read_settings(xyz.apply_axes({"alpha": 3.0}, cell))
        assert got == replace(
            read_settings({"alpha": 3.0, "enabled": True}), **{name: getattr(read_settings({name: value}), name)}
        )
    assert xyz.read_axes(p) == {}, "the p that is copied from is left alone"


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_before_any_image(grid: types.ModuleType, host: FakeHost, name: str) -> None:
    axis, p = option(grid, name), plain(host)
    with pytest.raises(HTTPException, match=f"K-LoRA: {name}: ") as refusal:
        plot(p, [(axis, [*(v for v in GOOD[name]), *BAD[name]])])
    assert refusal.value.status_code == 422 and host.samplers == []


def test_cells_are_drawn_with_their_own_values(grid: types.ModuleType, host: FakeHost) -> None:
    before, values = weights(host), [0.5, 1.5, 4.0]
    cells = plot(job(host), [(option(grid, "alpha"), values)])
    for alpha, cell in zip(values, cells):
        assert torch.equal(cell.images[0], process_images(job(host, {"alpha": alpha})).images[0])
        assert cell.written.get("K-LoRA alpha", "1.5") == repr(alpha)
    assert untouched(host, before)


def test_two_axes_meet_in_a_cell(grid: types.ModuleType, host: FakeHost) -> None:
    cells = plot(job(host), [(option(grid, "method"), ["content", "direct"]), (option(grid, "content_weight"), [0.5, 1])])
    wanted = [{"method": m, "content_weight": w} for m in ("content", "direct") for w in (0.5, 1.0)]
    for settings, cell in zip(wanted, cells):
        assert torch.equal(cell.images[0], process_images(job(host, settings)).images[0])


def test_an_axis_switches_a_closed_panel_on(grid: types.ModuleType, host: FakeHost) -> None:
    p = plain(host)
    p.script_args = tuple(getattr(replace(Settings(), content="subject", style="style"), f.name) for f in FIELDS)
    (cell,) = plot(p, [(option(grid, "alpha"), [2])])
    assert torch.equal(cell.images[0], process_images(job(host, {"alpha": 2})).images[0])


@pytest.mark.parametrize("order", [1, -1])
def test_the_axis_enabled_has_the_last_word(grid: types.ModuleType, host: FakeHost, order: int) -> None:
    axes = [(option(grid, "enabled"), ["False"]), (option(grid, "alpha"), [1, 2])][::order]
    without = process_images(plain(host)).images[0]
    assert all(torch.equal(cell.images[0], without) for cell in plot(job(host), axes))


def test_a_cell_says_nothing_of_the_cells_before_it(grid: types.ModuleType, host: FakeHost) -> None:
    """Copies of p share one dict of parameters."""
    cells = plot(job(host), [(option(grid, "layers"), ["attention", "all"])])
    assert [cell.written.get("K-LoRA layers") for cell in cells] == ["attention", None]


def test_a_cell_without_the_pair_carries_no_trace_of_it(grid: types.ModuleType, host: FakeHost) -> None:
    """Neither K-LoRA's words nor the pair's hashes."""
    p = job(host)
    on, off = plot(p, [(option(grid, "enabled"), ["True", "False"])])
    assert "K-LoRA content" in on.written and "Lora hashes" in on.written
    assert off.written == {}
    assert p.extra_generation_params == {}, "what the cells are copied from stays as it was"


def test_reading_back_a_cell(grid: types.ModuleType, host: FakeHost) -> None:
    (cell,) = plot(job(host), [(option(grid, "gamma"), ["0.25"])])
    found = {f.name: infotext.read(cell.written, f, f.default) for f in FIELDS if f.name != "show_map"}
    assert read_settings(found) == Settings(True, "subject", "style", gamma=0.25)


def test_an_axis_of_scale_brings_the_default_beta_of_each_scale() -> None:
    panel = {"enabled": True, "scale": "s", "alpha": 1.5, "beta": 0.5}

    def offset(panel: dict, **axes: object) -> float:
        return read_settings(xyz.apply_axes(panel, types.SimpleNamespace(klora_axes=axes))).offset

    assert offset(panel, scale="s*") == pytest.approx(1.275)
    assert offset(panel, scale="s*", alpha=2.0) == pytest.approx(1.7)
    assert offset(panel | {"beta": 0.7}, scale="s*") == 0.7  # set by hand: stays
    assert offset(panel, scale="s*", beta=0.5) == 0.5
    assert offset(panel, gamma=1) == 0.5
