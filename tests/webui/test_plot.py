"""Theorems of a plot: a cell that cannot be drawn is refused before the first image, or has the sentence in its place."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi import HTTPException
from PIL import Image, ImageChops

from klora_lib.hosts import detect
from klora_lib.rule.cache import Library
from klora_lib.settings import Settings
from klora_lib.webui import boot, sentence, xyz
from klora_lib.webui import plot as plots

from ..fakes import plot
from ..fakes.host import FakeHost, ScriptData
from ..fakes.processing import Processing, process_images
from ..fakes.samplers import Denoiser
from .jobs import job, plain, untouched, watch, weights


@pytest.fixture
def grid(host: FakeHost) -> Iterator[types.ModuleType]:
    module = plot.make()
    script = type("Script", (), {"__module__": "xyz_grid.py"})
    host.scripts.scripts_data.append(ScriptData(script, "", "", module))
    for callback in host.script_callbacks.registered["before_ui"]:
        callback()
    yield module


def run(grid: types.ModuleType, p: Processing, **axes: list[str]) -> Any:
    """A plot over axes that are named by setting, by `compare`, or by `words`, which is the plot's own Prompt S/R."""
    labels = {"compare": xyz.COMPARE, "words": "Prompt S/R"}
    options = {o.label: o for o in grid.axis_options}
    script = p.host.script
    script.args_from, script.args_to = 0, None
    p.scripts = types.SimpleNamespace(alwayson_scripts=[script])  # type: ignore[attr-defined]
    return grid.run(p, [(options[labels.get(name, f"K-LoRA {name}")], values) for name, values in axes.items()])


def refused(grid: types.ModuleType, p: Processing, **axes: list[str]) -> str:
    with pytest.raises(HTTPException) as refusal:
        run(grid, p, **axes)
    assert refusal.value.status_code == 422 and p.host.samplers == [] and grid.hidden == []
    return str(refusal.value.detail)


# --- before the first image ---


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({"alpha": ["1", "abc"]}, "alpha: must be a number from 0 to 1e+09, not 'abc'"),
        ({"switch_every": ["1", "2.5"]}, "switch_every: must be a whole number from 1 to 150, not '2.5'"),
        ({"content": ["subject", "nobody"]}, "content: there is no LoRA named 'nobody' among the 6 listed"),
        ({"content": []}, "the axis 'K-LoRA content' of the plot has no values"),
        ({"compare": ["klora", "magic"]}, "method: must be one of klora,"),
        ({"content": ["subject", "style"], "style": ["style", "subject_full"]},
         "1 of the plot's 4 cells cannot be drawn: content 'style', style 'style': style: must be another LoRA"),
        ({"scale": ["s", "s*"], "alpha": ["0", "1"]},
         "1 of the plot's 4 cells cannot be drawn: scale 's*', alpha 0.0: alpha: must be above 0 with scale s*"),
        ({"style": ["style", "other_family"]},
         "1 of the plot's 2 cells cannot be drawn: style 'other_family': content and style: 'subject' and 'other_"),
    ],
)  # fmt: skip
def test_what_is_known_is_refused_before_the_first_image(
    grid: types.ModuleType, host: FakeHost, axes: dict, sentence: str
) -> None:
    assert refused(grid, job(host), **axes).startswith(f"K-LoRA: {sentence}")


def test_a_model_that_is_loaded_later_is_not_judged(forge: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Forges load it when the first cell is drawn: until then there is the old one, or a placeholder."""
    monkeypatch.setattr(type(detect()), "find_sites", lambda self: {})  # the old one: no pair fits
    settings, p, data = Settings(content="subject", style="style"), job(forge), forge.sd_models.model_data

    def find_fault() -> str:
        return plots.find_fault(Library(), settings, p, model_stays=True)

    assert "none of the layers that both LoRAs touch is in 'tiny'" in find_fault()
    monkeypatch.setattr(data, "forge_loading_parameters", {"checkpoint_info": "new"}, raising=False)
    monkeypatch.setattr(data, "forge_hash", "old", raising=False)
    assert find_fault() == ""
    monkeypatch.setattr(data, "forge_loading_parameters", {})
    monkeypatch.setattr(forge.shared, "sd_model", object())
    assert find_fault() == ""


def test_another_checkpoint_for_the_hires_pass_is_loaded_later_too(
    grid: types.ModuleType, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, bool]] = []
    monkeypatch.setattr(plots, "find_fault", lambda _, settings, p, stays: seen.append((settings.balance, stays)) or "")
    p = job(host, {"hires": "own", "hires_balance": 1.0}, enable_hr=True)
    p.hr_checkpoint_name = "another"  # type: ignore[attr-defined]
    p.all_hr_prompts = [p.prompt]  # type: ignore[attr-defined]
    run(grid, p, alpha=["1"])
    assert seen == [(0.0, True), (1.0, False)]


def test_of_many_bad_cells_three_are_told(grid: types.ModuleType, host: FakeHost) -> None:
    said = refused(grid, job(host), style=["subject"], alpha=["1", "2", "3", "4", "5"])
    assert said.startswith("K-LoRA: 5 of the plot's 5 cells cannot be drawn: ") and said.endswith("; and 2 more")


def test_a_tag_that_the_plot_writes_is_checked_too(grid: types.ModuleType, host: FakeHost) -> None:
    p = plain(host, prompt="a cat <klora:subject:style>")
    said = refused(grid, p, words=["subject:style", "subject:nobody"])
    assert said.startswith("K-LoRA: 1 of the plot's 2 cells cannot be drawn: Prompt S/R 'subject:nobody': style: there")


def test_a_prompt_that_another_script_will_write_is_left_to_its_cells(grid: types.ModuleType, host: FakeHost) -> None:
    def write(p: Processing) -> None:
        p.all_prompts = ["a cat <klora:subject:style>"]

    host.on_process.append(write)
    p = plain(host, prompt="a cat {<klora:subject:style>|<klora:style:subject>}")
    assert len(run(grid, p, alpha=["1", "2"]).images) == 2


def test_a_plot_without_the_pair_is_the_hosts_own(grid: types.ModuleType, host: FakeHost) -> None:
    p = plain(host, prompt="a cat {")
    before = plot.AxisOption("Seed", int, lambda p, value, values: setattr(p, "seed", value))
    assert len(grid.run(p, [(before, ["1", "2"])]).images) == 2


# --- cells ---


def test_a_cell_that_fails_carries_the_sentence(grid: types.ModuleType, host: FakeHost) -> None:
    """Something that only the job itself can show; the infotexts of the cell and of the grid say so too."""
    before = weights(host)

    def spoil(denoiser: Denoiser) -> None:
        if denoiser.p.klora_job.settings.alpha == 2 and denoiser.step == 3:
            denoiser.p.klora_job.end("something else rewrote the model")

    host.on_call.append(spoil)
    processed = run(grid, job(host), alpha=["1", "2", "3"])
    first, told, last = processed.images
    assert torch.equal(first, process_images(job(host, {"alpha": 1})).images[0]) and isinstance(told, Image.Image)
    assert told.size == (32, 32) and not isinstance(last, Image.Image)
    said = 'K-LoRA not drawn: "K-LoRA: something else rewrote the model"'
    assert processed.infotexts[2].endswith(said), "the cell's"
    assert processed.infotexts[0].endswith(said) and "X Type: K-LoRA alpha" in processed.infotexts[0], "the grid's"
    assert not any("not drawn" in processed.infotexts[i] for i in (1, 3))
    assert grid.process_images is process_images and untouched(host, before)


def test_a_plot_of_which_nothing_can_be_drawn_is_refused(grid: types.ModuleType, host: FakeHost) -> None:
    host.on_call.append(lambda denoiser: denoiser.p.klora_job.end("something else rewrote the model"))
    with pytest.raises(HTTPException, match="K-LoRA: something else rewrote the model"):
        run(grid, job(host), alpha=["1", "2"])


def test_what_others_raise_is_the_hosts_own(grid: types.ModuleType, host: FakeHost) -> None:
    def fail(denoiser: Denoiser) -> None:
        if denoiser.p.klora_job.settings.alpha == 2:
            raise MemoryError("CUDA out of memory")

    host.on_call.append(fail)
    processed = run(grid, job(host), alpha=["1", "2"])
    assert processed.images[1] is None and [type(e) for e in grid.hidden] == [MemoryError]


def test_an_axis_over_a_tag_changes_what_it_says(grid: types.ModuleType, host: FakeHost) -> None:
    """The prompt of the cell has the tag that draws it."""
    p = plain(host, prompt="a cat <klora:subject:style:balance=1>")
    processed = run(grid, p, alpha=["1", "1.5"])
    for image, alpha in zip(processed.images, (1, 1.5)):
        assert torch.equal(image, process_images(job(host, {"alpha": alpha, "balance": 1}, prompt="a cat ")).images[0])
    assert processed.infotexts[1].startswith("a cat <klora:subject:style:alpha=1.0:balance=1.0>\n")
    assert processed.infotexts[2].startswith("a cat <klora:subject:style:balance=1.0>\n")
    assert p.prompt == "a cat <klora:subject:style:balance=1>"


def test_the_axis_enabled_switches_a_tag_off(grid: types.ModuleType, host: FakeHost) -> None:
    processed = run(grid, plain(host, prompt="a cat<klora:subject:style>"), enabled=["False", "True"])
    assert torch.equal(processed.images[0], process_images(plain(host)).images[0])
    assert torch.equal(processed.images[1], process_images(job(host)).images[0])


# --- ready axes ---


def test_comparing_methods_needs_no_values(grid: types.ModuleType, host: FakeHost) -> None:
    processed = run(grid, job(host), compare=[])
    assert len(processed.images) == len(xyz.METHODS_TO_COMPARE) and not grid.hidden
    of = dict(zip(xyz.METHODS_TO_COMPARE, processed.images))
    assert torch.equal(of["klora"], process_images(job(host)).images[0])
    assert torch.equal(of["klora s*"], process_images(job(host, {"scale": "s*"})).images[0])
    assert torch.equal(of["np"], process_images(job(host, {"method": "np"})).images[0])
    (axis,) = (o for o in grid.axis_options if o.label == xyz.COMPARE)
    assert axis.choices() == list(xyz.METHODS_TO_COMPARE) and axis.format_value(None, axis, "klora s*") == "klora s*"


def test_loras_vary_slowest(grid: types.ModuleType) -> None:
    cost = {o.label: o.cost for o in grid.axis_options}
    others = [cost[label] for label in cost if label not in ("K-LoRA content", "K-LoRA style")]
    assert 0.7 > cost["K-LoRA content"] > cost["K-LoRA style"] > max(others)


@pytest.mark.parametrize(("name", "kind"), [("alpha", float), ("switch_every", int)])
def test_an_axis_of_numbers_is_one_to_the_plot(grid: types.ModuleType, name: str, kind: type) -> None:
    """By this comparison it reads ranges."""
    (axis,) = (o for o in grid.axis_options if o.label == f"K-LoRA {name}")
    assert axis.type == kind and axis.type("3") == 3 and type(axis.type("3")) is kind
    assert axis.type("abc") == "abc"


def test_guarding_twice_guards_once(grid: types.ModuleType, host: FakeHost) -> None:
    guarded = grid.draw_xyz_grid
    boot.add_axes(host.app)
    assert grid.draw_xyz_grid is not guarded
    assert grid.draw_xyz_grid.klora_unguarded is guarded.klora_unguarded is not None
    assert not hasattr(grid.draw_xyz_grid.klora_unguarded, "klora_unguarded")


# --- the picture ---


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (512, 768)])
@pytest.mark.parametrize("text", ["K-LoRA: style: no LoRA is chosen", "x" * 400, "a " * 500, ""])
def test_a_sentence_is_a_picture_of_the_cells_size(size: tuple[int, int], text: str) -> None:
    image = sentence.draw_sentence(text, size)
    assert image.size == size and image.mode == "RGB"
    empty = Image.new("RGB", size, sentence.BACKGROUND)
    assert (ImageChops.difference(image, empty).getbbox() is None) == (text == "")


def test_the_default_of_a_panel_is_no_reason_to_check(grid: types.ModuleType, host: FakeHost) -> None:
    p = plain(host)
    p.script_args = tuple(getattr(Settings(), name) for name in ("enabled", "content", "style"))
    before = watch(host)
    option = plot.AxisOption("Seed", int, lambda p, value, values: setattr(p, "seed", value))
    assert len(grid.run(p, [(option, ["1"])]).images) == 1 and len(before) == 6
