"""Theorem: what is written into an image is read back as the same settings, and other images leave the panel alone."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import example, given
from hypothesis import strategies as st

from klora_lib import infotext
from klora_lib.errors import SettingsError
from klora_lib.settings import BY_NAME, ENGINES, FIELDS, HIRES, LAYERS, METHODS, PROGRESS, SCALES, Settings, read_settings
from klora_lib.webui import panel

weight = st.floats(-100, 100)
maybe = st.none() | weight
positive = st.floats(0, 1e9)
name = st.text(min_size=1, max_size=20).filter(lambda s: s.strip() not in ("", "None"))
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
    hires=st.sampled_from(HIRES),
    hires_balance=st.floats(-3, 3),
)


def written_out(settings: Settings) -> Settings:
    """β as the number it stands for, and without what says nothing about the image."""
    return replace(settings, beta=settings.offset, show_map=False)


def parse(text: str) -> dict[str, str]:
    """The last line of an infotext as AUTOMATIC1111 and the Forges read it."""
    found = {}
    for key, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.strip()):
        if value and value[0] == value[-1] == '"':
            with suppress(ValueError):
                value = json.loads(value)
        if size := re.match(r"^(\d+)x(\d+)$", value):
            found |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        else:
            found[key] = value
    return found


@given(some_settings)
@example(Settings(True, " cat", "512x768", scale="s*"))
@example(Settings(True, '"cat"', 'style "a, b": 5'))
@example(Settings(True, "a, b: c ", "\\", alpha=2.0, beta=0.5, scale="s*"))
def test_written_and_read_back_is_the_identity(settings: Settings) -> None:
    """Through the line of text, as a WebUI writes it into the image, and reads it."""
    text = infotext.write(settings)
    assert all(isinstance(v, str) for v in text.values())
    params = parse("Steps: 20, " + infotext.join(text) + ", Version: v1")
    read = {f.name: infotext.read(params, f, f.default) for f in FIELDS}
    assert read.pop("show_map") is None, "a paste does not change it"
    assert written_out(read_settings(read)) == written_out(settings)


@given(some_settings)
def test_pasting_into_the_panel_is_the_identity(settings: Settings) -> None:
    """Through the components' own values: None, '' and the β that its slider shows."""
    text = parse(infotext.join(infotext.write(settings)))
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
@example({"K-LoRA enabled": "True", "K-LoRA alpha": "0", "K-LoRA scale": "S*"})
@example({"K-LoRA enabled": "True", "K-LoRA alpha": "much", "K-LoRA k": "few"})
def test_what_strangers_wrote_is_read_or_refused_as_a_whole(params: dict[str, str]) -> None:
    on, *others = FIELDS
    try:
        enabled = infotext.read(params, on, on.default)
    except SettingsError as e:
        assert str(e).startswith("the text cannot be pasted: ") and "\n" not in str(e)
        assert [infotext.read(params, f, f.default) for f in others] == [None] * len(others), "nothing else changes"
        return
    values = {f.name: infotext.read(params, f, f.default) for f in others}
    if "K-LoRA enabled" in params:
        assert enabled == on.read(params["K-LoRA enabled"])
        assert all(values[f.name] == f.read(params[f.infotext]) for f in others if f.infotext in params)
    else:
        assert enabled is False and set(values.values()) == {None}


def test_a_refusal_names_every_value_that_cannot_be_read() -> None:
    params = {"K-LoRA enabled": "True", "K-LoRA alpha": "much", "K-LoRA content": "cat", "K-LoRA method": "merge"}
    with pytest.raises(SettingsError) as refused:
        infotext.read(params, BY_NAME["enabled"], False)
    said = str(refused.value)
    assert "alpha: must be a number from 0 to 1e+09, not 'much'" in said and "method: must be one of klora" in said


def test_the_panel_shows_the_refusal_and_the_api_answers_with_it() -> None:
    params = {"K-LoRA enabled": "True", "K-LoRA alpha": "much"}
    told = pytest.warns(UserWarning, match="K-LoRA: the text cannot be pasted: alpha")
    with told, pytest.raises(HTTPException) as refused:
        panel.make_paste(BY_NAME["enabled"])(params)
    assert refused.value.status_code == 422 and "alpha: must be a number" in refused.value.detail
    assert panel.make_paste(BY_NAME["alpha"])(params) is None


def test_what_a_tag_in_the_prompt_made_is_pasted_with_the_prompt() -> None:
    """The panel is off, and keeps what it has."""
    params = {"K-LoRA enabled": "True", "K-LoRA content": "cat", "K-LoRA alpha": "2.0", "K-LoRA tag": "used"}
    assert {f.name: infotext.read(params, f, f.default) for f in FIELDS} == {
        f.name: False if f.name == "enabled" else None for f in FIELDS
    }


def test_only_what_is_not_default_is_written() -> None:
    assert infotext.write(Settings(True, "a", "b")) == {
        "K-LoRA enabled": "True", "K-LoRA content": "a", "K-LoRA style": "b",
    }  # fmt: skip
    changed = Settings(
        True, "a", "b", 0.5, 0.5, 0.1, 0.2, k=3, layers="attention", engine="merge", show_map=True, switch_every=3
    )
    assert "K-LoRA show_map" not in infotext.write(changed)
    assert infotext.write(changed)["K-LoRA switch_every"] == "3"
    assert infotext.write(Settings(True, "a", "b", hires="own", hires_balance=1.0)).keys() >= {
        "K-LoRA hires", "K-LoRA hires_balance",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [("cat", "cat"), ("a, b", "a, b"), ("a b:c", "a b:c"), (" cat", '" cat"')])
def test_a_name_is_quoted_only_where_a_webui_would_not_or_would_do_wrong(name: str, text: str) -> None:
    assert infotext.write(Settings(True, name, "b"))["K-LoRA content"] == text


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


@pytest.mark.parametrize(("scale", "beta", "text"), [("s", 0.5, None), ("s*", 1.275, None), ("s*", 0.5, "0.5")])
def test_beta_is_left_out_where_it_is_the_default_of_its_scale(scale: str, beta: float, text: str | None) -> None:
    for value in {beta, None} if text is None else {beta}:
        written = infotext.write(Settings(True, "a", "b", scale=scale, beta=value))
        assert written.get("K-LoRA beta") == text
        assert infotext.read(written, BY_NAME["beta"], 0.5) == beta


def test_an_image_from_before_the_text_was_short_is_read() -> None:
    old = {
        "K-LoRA enabled": "True", "K-LoRA content": "cat", "K-LoRA style": "ink", "K-LoRA method": "klora",
        "K-LoRA alpha": "2.0", "K-LoRA beta": "1.7", "K-LoRA gamma": "auto", "K-LoRA scale": "s*",
    }  # fmt: skip
    read = {f.name: infotext.read(old, f, f.default) for f in FIELDS if f.name != "show_map"}
    assert read_settings(read) == Settings(True, "cat", "ink", alpha=2.0, beta=1.7, scale="s*")


class Job:
    def __init__(self, params: dict[str, Any]):
        self.extra_generation_params = params


def test_a_stamp_replaces_ours_and_leaves_a_shared_dict_alone() -> None:
    shared = {"Steps": 4, "K-LoRA layers": "attention"}
    p, settings = Job(shared), Settings(True, "a", "b")
    infotext.stamp(p, settings)
    assert p.extra_generation_params == {"Steps": 4, **infotext.write(settings)}
    assert shared == {"Steps": 4, "K-LoRA layers": "attention"}
