"""The report: each image is drawn once, each table stands where it belongs, the rest of the document stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from klora_lib.cli import report as command
from klora_lib.cli.main import main
from klora_lib.errors import SettingsError
from klora_lib.evaluation import report, toy
from klora_lib.evaluation.report import EXCHANGED, METHODS, TABLES, Row, fill_mark, format_texts, measure_tables
from klora_lib.evaluation.run import Lora, Task
from klora_lib.evaluation.table import ScoredImage
from klora_lib.settings import METHODS as NAMES

PAIRS = [(Lora(c, Path(f"{c}.file"), c), Lora(s, Path(f"{s}.file"), s)) for c in ("cat", "robot") for s in ("wash", "neon")]


class Desk:
    """Scores by arithmetic, and remembers what it was asked for."""

    def __init__(self, before: int = 0) -> None:
        self.before = before
        self.done: list[Task] = []

    def __call__(self, tasks: Sequence[Task]) -> Iterator[list[ScoredImage]]:
        for task in tasks:
            self.done.append(task)
            value = (self.before + len(self.done)) / 1000
            scores = {toy.SUBJECT: value, toy.STYLE: value, toy.BOTH: value}
            yield [ScoredImage(task.method, task.content.name, task.style.name, seed, scores) for seed in task.seeds]


def test_every_method_and_both_scales_are_rows():
    assert {row.settings.get("method", "klora") for row in METHODS.values()} == set(NAMES) - {"blora"}  # which is SDXL's
    assert {row.settings.get("scale", "s") for row in METHODS.values()} == {"s", "s*"}
    assert set(TABLES) == {"methods", "samplers", "k", "layers", "gamma", "balance", "turns", "grid"}
    assert len(TABLES["grid"]) == 9


def test_a_table_has_its_own_pairs():
    """A row that two tables have is drawn once for a pair that is in both."""
    desk, tables = Desk(), {"methods": {"klora, s": Row({})}, "k": {"K = auto": Row({}), "K = 4": Row({"k": 4})}}
    images = measure_tables(tables, {"methods": PAIRS, "k": PAIRS[:1]}, 3, {None: desk}, {})
    assert len(desk.done) == len(PAIRS) + 1
    pairs = {name: {(i.content, i.style) for i in of} for name, of in images.items()}
    assert len(pairs["methods"]) == len(PAIRS) and pairs["k"] == {("cat", "wash")}


def test_rows_that_draw_the_same_are_drawn_once():
    """`auto` is K's default, 0.5 is β's where none is given."""
    desks: dict[str | None, Desk] = {None: Desk(), "Euler": Desk(500)}
    tables = {
        "methods": {"klora, s": Row({}), "direct": Row({"method": "direct"})},
        "k": {"K = auto": Row({"k": "auto"}), "K = 4": Row({"k": 4}), "the grid's middle": Row({"alpha": 1.5, "beta": 0.5})},
        "samplers": {"Euler: klora, s": Row({}, sampler="Euler"), "own: klora, s": Row({})},
    }
    images = measure_tables(tables, dict.fromkeys(tables, PAIRS), 3, desks, {})
    assert len(desks[None].done) == 3 * len(PAIRS) and len(desks["Euler"].done) == len(PAIRS)
    rows = {name: [*dict.fromkeys(i.method for i in of)] for name, of in images.items()}
    assert rows == {name: [*of] for name, of in tables.items()}
    of = {name: [i.scores for i in images[table] if i.method == name] for table in tables for name in tables[table]}
    assert all(len(scores) == 3 * len(PAIRS) for scores in of.values())
    assert of["klora, s"] == of["K = auto"] == of["the grid's middle"] == of["own: klora, s"] != of["K = 4"]
    assert of["Euler: klora, s"] != of["klora, s"]


def test_files_are_exchanged_and_names_are_not():
    """So what a picture should show stays the same, and the choice is turned round."""
    desk = Desk()
    measure_tables({"methods": {EXCHANGED: METHODS[EXCHANGED]}}, {"methods": PAIRS[:1]}, 2, {None: desk}, {})
    (task,) = desk.done
    assert (task.content.name, task.content.phrase, task.content.path.name) == ("cat", "cat", "wash.file")
    assert (task.style.name, task.style.phrase, task.style.path.name) == ("wash", "wash", "cat.file")


def test_random_draws_image_by_image():
    """A batch has one plan, and that method's is the seed's."""
    desk = Desk()
    rows = {name: METHODS[name] for name in ("random", "direct")}
    measure_tables({"methods": rows}, {"methods": PAIRS[:1]}, 4, {None: desk}, {})
    assert [task.batch for task in desk.done] == [1, report.MAX_BATCH]


def test_a_key_says_what_is_no_default():
    assert Row({}).key == Row({"k": "auto", "beta": 0.5}).key == "defaults"
    assert Row({"method": "direct"}, True, "Euler").key == "method direct, files exchanged, sampler Euler"
    assert Row({"scale": "s*"}).key == "beta 1.275, scale s*"


def images(values: dict[str, float]) -> list[ScoredImage]:
    return [
        ScoredImage(method, "cat", style, seed, {toy.SUBJECT: 1.0, toy.STYLE: value, toy.BOTH: value})
        for method, value in values.items()
        for style in ("wash", "neon")
        for seed in (0, 1)
    ]


def test_the_grid_is_alpha_across_and_beta_down():
    values = {f"α = {a}, β = {b}": a * b / 10 for a in report.ALPHAS for b in report.BETAS}
    assert format_texts("grid", images(values))["grid"].splitlines() == [
        "| β \\ α | 1.0 | 1.5 | 2.0 |",
        "|---|---|---|---|",
        "| 0.25 | 2.5 (2.5 to 2.5) | 3.8 (3.8 to 3.8) | 5.0 (5.0 to 5.0) |",
        "| 0.5 | 5.0 (5.0 to 5.0) | 7.5 (7.5 to 7.5) | 10.0 (10.0 to 10.0) |",
        "| 0.75 | 7.5 (7.5 to 7.5) | 11.2 (11.2 to 11.2) | 15.0 (15.0 to 15.0) |",
    ]


def test_pairs_have_a_line_each():
    made = format_texts("methods", images({"direct": 0.25, "klora, s": 0.5, "topk": 0.75}))
    assert [*made] == ["methods", "ahead", "pairs"]
    assert made["pairs"].splitlines() == [
        "| content | style | direct | klora, s |",
        "|---|---|---|---|",
        "| cat | wash | 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) |",
        "| cat | neon | 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) |",
    ]


def test_ahead_is_by_seed_and_counts_pairs():
    """A row that gains half in one pair and loses a quarter in the other is ahead by an eighth, in one pair of two."""
    values = {
        "direct": {"wash": (0.0, 0.25), "neon": (0.25, 0.5)},
        "klora, s": {"wash": (0.5, 0.75), "neon": (0.0, 0.25)},
    }
    rows = [replace(i, scores={"both": values[i.method][i.style][i.seed]}) for i in images(dict.fromkeys(values, 0.0))]
    assert format_texts("methods", rows)["ahead"].splitlines()[2:] == ["| klora, s | 12.5 (12.5 to 12.5) | 1 of 2 |"]


def test_what_is_around_a_table_stays():
    text = "Words.\n<!-- k -->\nold\n<!-- /k -->\nMore.\n"
    assert fill_mark(text, "k", "new\n") == "Words.\n<!-- k -->\nnew\n<!-- /k -->\nMore.\n"
    with pytest.raises(SettingsError, match="document: has no place for the table 'grid'"):
        fill_mark(text, "grid", "new\n")


# --- the command ---


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """In the toy's place; the document beside it is a copy of the repository's own."""
    desk = Desk()
    bounds = [ScoredImage("best", "cat", "wash", 0, {"true picture: features": 0.875})]
    monkeypatch.setattr(report.toy, "list_pairs", lambda: PAIRS)
    monkeypatch.setattr(report.toy, "list_true_pairs", lambda: PAIRS[:2])
    monkeypatch.setattr(report.toy, "make_worker", lambda sampler=None: None)
    monkeypatch.setattr(report.toy, "measure_bounds", lambda worker, seeds: bounds)
    alone = [ScoredImage("cat", "cat", "", seed, {"named right": 1.0}) for seed in (0, 1)]
    monkeypatch.setattr(report.toy, "measure_alone", lambda worker, seeds: alone)
    monkeypatch.setattr(command, "make_local_workers", lambda make: desk)
    monkeypatch.chdir(tmp_path)
    Path("doc.md").write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    return desk


def test_every_table_of_the_document_is_measured(desk: Desk) -> None:
    assert main(["report", "doc.md", "--seeds", "2", "--csv", "new/scores.csv"]) == 0
    text = Path("doc.md").read_text(encoding="utf-8")
    assert outside(text) == outside(DOCUMENT.read_text(encoding="utf-8"))
    for name, rows in TABLES.items():
        table = text.split(f"<!-- {name} -->\n")[1].split("<!-- /")[0]
        assert "(" in table and (name == "grid" or all(f"| {row} |" in table for row in rows))
    assert "4 pairs in the tables of methods, 2 in all others, × 2 seeds" in text
    assert "| best | **87.5" in text and "| cat | **100.0" in text
    lines = Path("new/scores.csv").read_text().splitlines()
    every = {row.key for row in METHODS.values()}
    others = {row.key for rows in TABLES.values() for row in rows.values()} - every
    assert len(desk.done) == len(every) * len(PAIRS) + len(others) * 2 and len(lines) == 1 + 2 * len(desk.done)


def test_a_run_that_was_cut_off_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn twice, and the tables are those of one run."""
    assert main(["report", "doc.md", "--seeds", "2", "--csv", "whole.csv"]) == 0
    whole, count = Path("doc.md").read_text(encoding="utf-8"), len(desk.done)
    lines = Path("whole.csv").read_text().splitlines(keepends=True)
    Path("part.csv").write_text("".join(lines[: 1 + 2 * 7]))
    desk.done.clear()
    desk.before = 7
    assert main(["report", "doc.md", "--seeds", "2", "--csv", "part.csv", "--resume"]) == 0
    assert len(desk.done) == count - 7
    assert tables(Path("doc.md").read_text(encoding="utf-8")) == tables(whole)
    assert Path("part.csv").read_text() == "".join(lines)


DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"


def outside(text: str) -> list[str]:
    """What stands around the tables."""
    return [part.split("<!-- ")[0] for part in text.split(" -->")[::2]]


def tables(text: str) -> list[str]:
    names = (*TABLES, "alone", "ahead", "ahead by sampler", "pairs", "bounds")
    return [text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name}")[0] for name in names]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.md", "--csv", "a.csv"], "document: 'nowhere.md' cannot be read: No such file"),
        (["empty.md", "--csv", "a.csv"], "document: has no place for the table 'methods'"),
        (["empty.md", "--csv", "a.csv", "--seeds", "0"], "seeds: must be a whole number from 1"),
        (["empty.md"], "the following arguments are required: --csv"),
        (["doc.md", "--csv", "empty.md/a.csv"], "csv: 'empty.md/a.csv' cannot be written"),
        (["doc.md", "--csv", "doc.md", "--resume"], "csv: 'doc.md' is no table of scores"),
        (["doc.md", "--csv", "gone.csv", "--resume"], "csv: 'gone.csv' cannot be read: No such file"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(words: list[str], said: str, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.md").write_text("# Nothing\n", encoding="utf-8")
    assert main(["report", *words]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert said in told
    assert Path("empty.md").read_text(encoding="utf-8") == "# Nothing\n"
    assert Path("doc.md").read_text(encoding="utf-8") == DOCUMENT.read_text(encoding="utf-8") and not desk.done
