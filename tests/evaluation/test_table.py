"""The table: means by pair, intervals that shrink with more seeds, the best of a column in bold."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from klora_lib.evaluation.table import ScoredImage, format_csv, format_markdown, make_table, measure_cell


def images(method: str, values: dict[tuple[str, str], list[float]]) -> list[ScoredImage]:
    return [
        ScoredImage(method, *pair, seed, {"subject": value, "style": 1 - value})
        for pair, own in values.items()
        for seed, value in enumerate(own)
    ]


def test_mean_counts_every_pair_alike():
    """However many seeds it has."""
    uneven = images("klora", {("a", "x"): [0.0], ("b", "x"): [1.0, 1.0, 1.0]})
    assert measure_cell(uneven, "subject").mean == pytest.approx(0.5)


def test_interval_is_of_the_mean():
    """Half its width is 1.96·σ/√n, for seeds within a pair; what pairs differ by is not in it."""
    drawn = np.random.default_rng(3).normal(0, 0.1, 400)
    one = measure_cell(images("klora", {("a", "x"): list(drawn)}), "subject")
    two = measure_cell(images("klora", {("a", "x"): list(drawn), ("b", "x"): list(10 + drawn)}), "subject")
    expected = 1.96 * drawn.std() / 20
    assert one.low < one.mean < one.high
    assert (one.high - one.low) / 2 == pytest.approx(expected, rel=0.1)
    assert (two.high - two.low) / 2 == pytest.approx(expected / np.sqrt(2), rel=0.1)
    assert two.mean == pytest.approx(one.mean + 5)


def test_rows_and_columns_keep_their_order():
    made = make_table(images("style", {("a", "x"): [0.1]}) + images("content", {("a", "x"): [0.7]}))
    assert [*made] == ["style", "content"]
    assert [*made["style"]] == ["subject", "style"]


def test_markdown_marks_the_best_of_each_column():
    text = format_markdown(make_table(images("one", {("a", "x"): [0.25] * 2}) + images("two", {("a", "x"): [0.75] * 2})))
    assert text.splitlines() == [
        "| method | subject ↑ | style ↑ |",
        "|---|---|---|",
        "| one | 25.0 (25.0 to 25.0) | **75.0 (75.0 to 75.0)** |",
        "| two | **75.0 (75.0 to 75.0)** | 25.0 (25.0 to 25.0) |",
    ]


def test_one_seed_a_pair_has_a_mean_and_no_interval():
    one = measure_cell(images("klora", {("a", "x"): [0.25], ("b", "x"): [0.75]}), "subject")
    assert (one.mean, one.low, one.high) == (0.5, None, None)
    assert "| klora | **50.0** | **50.0** |" in format_markdown(make_table(images("klora", {("a", "x"): [0.5]})))


def test_csv_has_a_line_an_image():
    made = images("klora", {("a", "x"): [0.5, 0.25], ("b, c", "x"): [1.0]})
    read = list(csv.DictReader(io.StringIO(format_csv(made))))
    assert [(r["content"], r["seed"], float(r["subject"])) for r in read] == [
        ("a", "0", 0.5),
        ("a", "1", 0.25),
        ("b, c", "0", 1.0),
    ]
