"""The report: each image is drawn once, each table stands where it belongs, the rest of the document stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from klora_lib.errors import SettingsError
from klora_lib.evaluation import report
from klora_lib.evaluation.report import EXCHANGED, METHODS, TABLES, Row, main, measured, placed, written
from klora_lib.evaluation.run import Lora, Task
from klora_lib.evaluation.table import Scored
from klora_lib.settings import METHODS as NAMES

PAIRS = [(Lora(c, Path(f"{c}.file"), c), Lora(s, Path(f"{s}.file"), s)) for c in ("cat", "robot") for s in ("wash", "neon")]


class Desk:
    """Scores by arithmetic, and remembers what it was asked for."""

    def __init__(self, lowest: float = 0) -> None:
        self.lowest = lowest
        self.done: list[Task] = []

    def __call__(self, tasks: Sequence[Task]) -> Iterator[list[Scored]]:
        for task in tasks:
            self.done.append(task)
            value = self.lowest + len(self.done) / 1000
            scores = {"subject": value, "style": value, "both": value}
            yield [Scored(task.method, task.content.name, task.style.name, seed, scores) for seed in task.seeds]


def test_every_method_and_both_scales_are_rows():
    assert {row.settings.get("method", "klora") for row in METHODS.values()} == set(NAMES)
    assert {row.settings.get("scale", "s") for row in METHODS.values()} == {"s", "s*"}
    assert set(TABLES) == {"methods", "samplers", "k", "layers", "gamma", "grid"}
    assert len(TABLES["grid"]) == 9


def test_rows_that_draw_the_same_are_drawn_once():
    """`auto` is K's default, (1.5, 0.5) the grid's middle."""
    desks: dict[str | None, Desk] = {None: Desk(), "Euler": Desk(0.5)}
    tables = {
        "methods": {"klora, s": Row({}), "direct": Row({"method": "direct"})},
        "k": {"K = auto": Row({"k": "auto"}), "K = 4": Row({"k": 4})},
        "samplers": {"Euler: klora, s": Row({}, sampler="Euler"), "own: klora, s": Row({})},
    }
    images = measured(tables, PAIRS, 3, desks)
    assert len(desks[None].done) == 3 * len(PAIRS) and len(desks["Euler"].done) == len(PAIRS)
    rows = {name: [*dict.fromkeys(i.method for i in of)] for name, of in images.items()}
    assert rows == {name: [*of] for name, of in tables.items()}
    of = {name: [i.scores for i in images[table] if i.method == name] for table in tables for name in tables[table]}
    assert all(len(scores) == 3 * len(PAIRS) for scores in of.values())
    assert of["klora, s"] == of["K = auto"] == of["own: klora, s"] != of["K = 4"]
    assert of["Euler: klora, s"] != of["klora, s"]


def test_files_are_exchanged_and_names_are_not():
    """So what a picture should show stays the same, and the choice is turned round."""
    desk = Desk()
    measured({"methods": {EXCHANGED: METHODS[EXCHANGED]}}, PAIRS[:1], 2, {None: desk})
    (task,) = desk.done
    assert (task.content.name, task.content.phrase, task.content.path.name) == ("cat", "cat", "wash.file")
    assert (task.style.name, task.style.phrase, task.style.path.name) == ("wash", "wash", "cat.file")


def test_random_draws_image_by_image():
    """A batch has one plan, and that method's is the seed's."""
    desk = Desk()
    measured({"methods": {name: METHODS[name] for name in ("random", "direct")}}, PAIRS[:1], 4, {None: desk})
    assert [task.batch for task in desk.done] == [1, 4]


def images(values: dict[str, float]) -> list[Scored]:
    return [
        Scored(method, "cat", style, seed, {"subject": 1.0, "style": value, "both": value})
        for method, value in values.items()
        for style in ("wash", "neon")
        for seed in (0, 1)
    ]


def test_the_grid_is_alpha_across_and_beta_down():
    values = {f"α = {a}, β = {b}": a * b / 10 for a in report.ALPHAS for b in report.BETAS}
    assert written("grid", images(values))["grid"].splitlines() == [
        "| β \\ α | 1.0 | 1.5 | 2.0 |",
        "|---|---|---|---|",
        "| 0.25 | 2.5 (2.5 to 2.5) | 3.8 (3.8 to 3.8) | 5.0 (5.0 to 5.0) |",
        "| 0.5 | 5.0 (5.0 to 5.0) | 7.5 (7.5 to 7.5) | 10.0 (10.0 to 10.0) |",
        "| 0.75 | 7.5 (7.5 to 7.5) | 11.2 (11.2 to 11.2) | 15.0 (15.0 to 15.0) |",
    ]


def test_pairs_have_a_line_each():
    made = written("methods", images({"direct": 0.25, "klora, s": 0.5, "topk": 0.75}))
    assert [*made] == ["methods", "pairs"]
    assert made["pairs"].splitlines() == [
        "| content | style | direct | klora, s |",
        "|---|---|---|---|",
        "| cat | wash | 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) |",
        "| cat | neon | 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) |",
    ]


def test_what_is_around_a_table_stays():
    text = "Words.\n<!-- k -->\nold\n<!-- /k -->\nMore.\n"
    assert placed(text, "k", "new\n") == "Words.\n<!-- k -->\nnew\n<!-- /k -->\nMore.\n"
    with pytest.raises(SettingsError, match="document: has no place for the table 'grid'"):
        placed(text, "grid", "new\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.md"], "document: 'nowhere.md' cannot be read"),
        (["empty.md"], "document: has no place for the table 'methods'"),
        (["empty.md", "--seeds", "0"], "seeds: must be a whole number from 1"),
        ([], "the following arguments are required: document"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.md").write_text("# Nothing\n", encoding="utf-8")
    assert main(words) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert said in told
    assert Path("empty.md").read_text(encoding="utf-8") == "# Nothing\n"
