"""Theorem: what is written into an image is read back as the same settings, and other images leave the panel alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klora_lib import infotext
from klora_lib.settings import BY_NAME, ENGINES, FIELDS, LAYERS, METHODS, PROGRESS, SCALES, Settings, read_settings
from klora_lib.webui import panel

weight = st.floats(-100, 100)
maybe = st.none() | weight
positive = st.floats(0, 1e9)
name = st.text(min_size=1, max_size=20).map(str.strip).filter(lambda s: s not in ("", "None"))
some_settings = st.builds(
    Settings,
    enabled=st.just(True),
    content=name,
    style=name,
    content_weight=weight,
    style_weight=weight,
    content_te_weight=maybe,
    style_te_weight=maybe,
    method=st.sampled_from(METHODS),
    alpha=st.floats(1e-300, 1e9),
    beta=st.none() | positive,
    gamma=st.sampled_from(["auto", "mean-ratio"]) | st.floats(1e-300, 1e9),
    scale=st.sampled_from(SCALES),
    k=st.just("auto") | st.integers(1, 2**53),
    layers=st.sampled_from(LAYERS),
    progress=st.sampled_from(PROGRESS),
    engine=st.sampled_from(ENGINES),
    show_map=st.booleans(),
    switch_every=st.integers(1, 150),
    balance=st.floats(-3, 3),
    mu=st.floats(0, 1e9),
    density=st.floats(1e-6, 1),
)


def written_out(settings: Settings) -> Settings:
    """β as the number it stands for, and without what says nothing about the image."""
    return replace(settings, beta=settings.offset, show_map=False)


@given(some_settings)
def test_written_and_read_back_is_the_identity(settings: Settings) -> None:
    text = infotext.write(settings)
    assert all(isinstance(v, str) for v in text.values())
    read = {f.name: infotext.read(text, f, f.default) for f in FIELDS}
    assert read.pop("show_map") is None, "a paste does not change it"
    assert read_settings(read) == written_out(settings)


@given(some_settings)
def test_pasting_into_the_panel_is_the_identity(settings: Settings) -> None:
    """Through the components' own values: None, '' and the β that its slider shows."""
    text = infotext.write(settings)
    pasted = {f.name: panel.make_paste(f)(text) for f in FIELDS if f.name != "show_map"}
    assert not [n for n, value in pasted.items() if value is None]
    assert read_settings(pasted) == written_out(settings)


@given(st.dictionaries(st.sampled_from(["Steps", "Seed", "Lora hashes", "K-LoRA", "K-LoRA until"]), st.text()))
def test_a_foreign_infotext_switches_it_off_and_changes_nothing_else(params: dict[str, str]) -> None:
    assert {f.name: infotext.read(params, f, f.default) for f in FIELDS} == {
        f.name: False if f.name == "enabled" else None for f in FIELDS
    }


anything = st.text() | st.sampled_from(["nan", "inf", "-1e999", "1e400", "0x10", "None", "True", "１"])


@given(st.dictionaries(st.sampled_from([f.infotext for f in FIELDS]), anything))
def test_nothing_that_stands_in_an_image_raises(params: dict[str, str]) -> None:
    """Infotext comes from strangers: a value is read, or its field is left as it is."""
    for field in FIELDS:
        value = infotext.read(params, field, field.default)
        assert value is None or field.read(value) == value


def test_defaults_are_left_out_but_for_what_makes_the_image_readable() -> None:
    assert list(infotext.write(Settings(True, "a", "b"))) == [
        f"K-LoRA {n}" for n in ("enabled", "content", "style", "method", "alpha", "beta", "gamma", "scale")
    ]
    everything = Settings(
        True, "a", "b", 0.5, 0.5, 0.1, 0.2, k=3, layers="attention", engine="merge", show_map=True, switch_every=3
    )
    assert "K-LoRA show_map" not in infotext.write(everything)
    assert infotext.write(everything)["K-LoRA switch_every"] == "3"


def test_an_image_of_switch_from_before_its_default_changed_is_read_as_it_was_drawn() -> None:
    """It left out 5, which was the default; since then it is always told where that method looks at it."""
    old = {"K-LoRA enabled": "True", "K-LoRA method": "switch"}
    assert infotext.read(old, BY_NAME["switch_every"], 2) == 5
    assert infotext.read(old | {"K-LoRA switch_every": "7"}, BY_NAME["switch_every"], 2) == 7
    assert infotext.read(old | {"K-LoRA method": "klora"}, BY_NAME["switch_every"], 2) == 2
    assert infotext.write(Settings(True, "a", "b", method="switch"))["K-LoRA switch_every"] == "2"
    assert "K-LoRA switch_every" not in infotext.write(Settings(True, "a", "b"))


def test_an_image_from_before_a_setting_was_there_has_its_default() -> None:
    old = {"K-LoRA enabled": "True", "K-LoRA method": "klora", "K-LoRA alpha": "1.5"}
    assert [infotext.read(old, BY_NAME[n], BY_NAME[n].default) for n in ("balance", "mu", "density")] == [0.0, 0.5, 0.2]


@pytest.mark.parametrize(("scale", "beta"), [("s", "0.5"), ("s*", "1.275")])
def test_beta_is_written_as_the_number_it_was(scale: str, beta: str) -> None:
    assert infotext.write(Settings(True, "a", "b", scale=scale))["K-LoRA beta"] == beta


class Job:
    def __init__(self, params: dict[str, Any]):
        self.extra_generation_params = params


def test_a_stamp_replaces_ours_and_leaves_a_shared_dict_alone() -> None:
    shared = {"Steps": 4, "K-LoRA layers": "attention"}
    p, settings = Job(shared), Settings(True, "a", "b")
    infotext.stamp(p, settings)
    assert p.extra_generation_params == {"Steps": 4, **infotext.write(settings)}
    assert shared == {"Steps": 4, "K-LoRA layers": "attention"}
