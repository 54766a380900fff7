"""Theorems: one table, which nothing drifts from; whatever is given, a setting is read or refused in a sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klora_lib.errors import KLoraError, SettingsError
from klora_lib.settings import BY_NAME, FIELDS, Field, Settings, name_arguments, read_settings

# as the contract lists them; appended since: all after show_map
CONTRACT = [
    "enabled", "content", "style", "content_weight", "style_weight", "content_te_weight", "style_te_weight", "method",
    "alpha", "beta", "gamma", "scale", "k", "layers", "progress", "engine", "show_map", "switch_every",
    "balance", "mu", "density", "hires", "hires_balance",
]  # fmt: skip
WORDS = ("content", "style")  # fields that take any text


def refusal(given: dict[str, Any]) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        read_settings(given)
    return caught.value


# --- drift ---


def test_the_table_has_the_contracts_names_in_its_order() -> None:
    assert [f.name for f in FIELDS] == CONTRACT == list(BY_NAME)


def test_the_dataclass_has_the_tables_names_and_defaults() -> None:
    assert {f.name: f.default for f in dataclasses.fields(Settings)} == {f.name: f.default for f in FIELDS}
    assert [f.name for f in dataclasses.fields(Settings)] == CONTRACT


def test_the_contracts_defaults() -> None:
    s = read_settings({})
    assert s == Settings()
    assert (s.enabled, s.content, s.style, s.content_weight, s.style_weight) == (False, "", "", 1.0, 1.0)
    assert (s.content_te_weight, s.style_te_weight, s.method) == (None, None, "klora")
    assert (s.alpha, s.offset, s.gamma, s.scale, s.k) == (1.5, 0.5, "auto", "s", "auto")
    assert (s.layers, s.progress, s.engine, s.show_map) == ("all", "steps", "auto", False)
    assert read_settings({"scale": "s*"}).offset == 1.275


def test_infotext_names_are_the_stems() -> None:
    assert [f.infotext for f in FIELDS] == [f"K-LoRA {name}" for name in CONTRACT]
    assert all("," not in f.infotext and ":" not in f.infotext for f in FIELDS)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_default_reads_as_itself(field: Field) -> None:
    value = read_settings({field.name: field.default})
    assert value == Settings()
    assert type(getattr(value, field.name)) is type(field.default)


@pytest.mark.parametrize("field", FIELDS, ids=lambda f: f.name)
def test_every_choice_and_both_ends_of_a_slider_are_accepted(field: Field) -> None:
    for value in (*field.choices, *(field.range or ())[:2]):
        if value is not None:
            read = getattr(read_settings({field.name: value}), field.name)
            assert getattr(read_settings({field.name: read}), field.name) == read


@pytest.mark.parametrize("field", [f for f in FIELDS if f.choices], ids=lambda f: f.name)
def test_the_first_choice_is_the_default(field: Field) -> None:
    if not isinstance(field.default, bool):
        assert field.choices[0] == field.default


# --- reading ---


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("enabled", "True", True), ("enabled", "off", False), ("enabled", 1, True), ("enabled", 0, False),
        ("content", " cat ", " cat "), ("style", "  ", ""), ("content", "None", ""), ("style", "", ""),
        ("content_weight", "0.5", 0.5), ("style_weight", -2, -2.0), ("content_te_weight", "", None),
        ("content_te_weight", 0, 0.0), ("method", "No-Gamma", "no-gamma"), ("alpha", 0, 0.0), ("beta", None, None),
        ("beta", "1.275", 1.275), ("gamma", "AUTO", "auto"), ("gamma", "0.5", 0.5), ("gamma", 2, 2.0),
        ("gamma", "mean-ratio", "mean-ratio"), ("scale", "S*", "s*"), ("k", "auto", "auto"), ("k", "64", 64),
        ("k", 64.0, 64), ("k", 2**53, 2**53), ("k", "All", "all"), ("switch_every", "3", 3), ("balance", "-3", -3.0),
        ("mu", 0, 0.0), ("mu", 1e9, 1e9), ("density", "1", 1.0), ("method", "EST", "est"),
    ],
)  # fmt: skip
def test_what_a_panel_a_request_and_an_infotext_give(name: str, raw: Any, value: Any) -> None:
    read = getattr(read_settings({name: raw}), name)
    assert (read, type(read)) == (value, type(value))


def test_beta_follows_scale_and_alpha_until_it_is_given() -> None:
    assert read_settings({"scale": "s*", "alpha": 2}).offset == 1.7
    assert read_settings({"scale": "s*", "beta": 0.5}).offset == 0.5
    assert read_settings({"scale": "s*", "beta": 0}).offset == 0.0


def test_positional_values_are_the_table_in_order() -> None:
    values = [f.default for f in FIELDS]
    assert read_settings(name_arguments(values)) == Settings()
    assert name_arguments([True, "cat"]) == {"enabled": True, "content": "cat"}
    assert name_arguments([{"content": "cat"}, "left over"]) == {"content": "cat"}
    assert name_arguments([]) == {}


# --- refusals ---

BAD: dict[str, list[Any]] = {
    **{f.name: [[], {}, object(), "\x00", b"1", 1j] for f in FIELDS if f.name not in WORDS},
    **{name: [None, 1, True, [], {}, b"cat"] for name in WORDS},
}
NUMBERS = ("content_weight", "style_weight", "content_te_weight", "style_te_weight", "alpha", "beta", "gamma", "k",
           "switch_every", "balance", "mu", "density", "hires_balance")  # fmt: skip
for number in NUMBERS:
    BAD[number] += [math.nan, math.inf, -math.inf, "nan", "inf", "1e999", True, False, 10**400, "1,5", "½"]
    BAD[number] += [{"balance": -3.1, "hires_balance": -3.1}.get(number, 101 if "weight" in number else -1)]
for name in ("gamma", "k", "switch_every", "density"):
    BAD[name] += [0, "0", None, ""]
for name in ("balance", "hires_balance"):
    BAD[name] += [3.1, None, ""]
BAD["mu"] += [None, ""]
BAD["density"] += [1.1]
for name in ("k", "switch_every"):
    BAD[name] += [1.5, "1.5"]
BAD["enabled"] += ["maybe", None, 2, math.nan]
BAD["method"] += ["", "k-lora", None, 1, True]


@pytest.mark.parametrize("name", BAD)
def test_every_bad_value_is_refused_under_its_name_with_what_would_do(name: str) -> None:
    for value in BAD[name]:
        error = refusal({name: value})
        assert error.field == name
        assert str(error).startswith(f"{name}: must be {BY_NAME[name].accepts}, not ")
        assert len(str(error)) < 300


@pytest.mark.parametrize("name", [f.name for f in FIELDS if f.name not in WORDS])
def test_a_number_too_long_to_be_written_out_is_refused_like_any_other(name: str) -> None:
    """Python itself refuses to print a whole number of more than 4300 digits."""
    assert refusal({name: 10**5000}).field == name


def test_one_refusal_names_all_offenders() -> None:
    given = {name: values[0] for name, values in BAD.items()}
    said = str(refusal({**given, "strength": 1, "show_map": True}))
    assert all(f"{name}: must be" in said for name in given if name != "show_map")
    assert "strength" in said and "is not a K-LoRA setting" in said
    assert "show_map: must" not in said


def test_an_unknown_name_is_told_which_there_are() -> None:
    assert all(name in str(refusal({"contnet": "cat"})) for name in BY_NAME)


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "x" * 10_000, "", 5, None])
def test_an_unknown_name_of_any_kind_can_be_shown_in_one_short_line(name: Any) -> None:
    """It comes from a request, and goes back in one: a lone surrogate cannot be encoded, and would make a 500 of a 422."""
    said = str(refusal({name: 1}))
    assert "\n" not in said
    assert len(said) < 400
    said.encode()


def test_s_star_needs_an_alpha() -> None:
    assert refusal({"scale": "s*", "alpha": 0}).field == "alpha"
    assert read_settings({"scale": "s", "alpha": 0}).alpha == 0


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=5)
    | st.sampled_from([10**400, -(10**400), "1e999", "NaN", "-inf", "0x10", "1_000", "\ud800", "٣", " 1 "]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@given(given=st.dictionaries(st.sampled_from(CONTRACT) | st.text(st.characters(), max_size=5), anything, max_size=6))
def test_anything_at_all_is_read_or_refused_in_a_sentence_that_can_be_sent(given: dict[str, Any]) -> None:
    try:
        read = read_settings(given)
    except SettingsError as error:
        assert "\n" not in str(error)
        str(error).encode()
    else:
        for name in NUMBERS:
            value = getattr(read, name)
            assert value in ("auto", "mean-ratio", "all", None) or math.isfinite(value)
        assert read_settings(dataclasses.asdict(read)) == read


def test_refusals_are_of_one_tree() -> None:
    assert issubclass(SettingsError, KLoraError)
    assert str(SettingsError("must be odd", "k")) == "k: must be odd"
    assert str(SettingsError("must be odd").blame("k")) == "k: must be odd"
    assert type(SettingsError("must be odd").blame("k")) is SettingsError
