"""The program of `make gpu` on a CPU: its quickest rows hold, and what is wrong in a row makes it fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from . import __main__ as program
from . import rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
QUICK = ["--device", "cpu", "--size", "64", "--quick", "--steps", "3"]
ONE = "^toy fp32 bypass on the device$"


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """The program makes diffusers quiet."""
    before = diffusers.utils.logging.get_verbosity()
    yield
    diffusers.utils.logging.set_verbosity(before)
    diffusers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def known() -> dict[Any, Any]:
    return {}


@pytest.fixture(autouse=True)
def by_hand_once(known: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The images by hand are the same in all tests here: nothing that a test changes is in them."""
    monkeypatch.setattr(program, "Bench", lambda *given: rows.Bench(*given[:-1], known))


def cells(path: Path) -> list[dict[str, str]]:
    """The rows of the table that was written, by column; the last is the verdict, named ""."""
    lines = [line.strip("| ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    head, *found = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [dict(zip([*head, ""], row)) for row in found]


def test_the_quickest_rows_hold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Both engines, both models, offloaded, fp8, and one that is to be refused."""
    chosen = [
        "small random SDXL bf16 bypass on the device", "toy fp32 merge model offload", "toy fp8 bypass.*",
        "toy fp32 .* sequential offload",
    ]  # fmt: skip
    out = tmp_path / "table.md"
    assert program.main([*QUICK, "--only", f"^({'|'.join(chosen)})$", "--out", str(out)]) == 0
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")
    table = cells(out)
    assert [row[""] for row in table] == ["ok"] * 5 and {row["weights afterwards"] for row in table} == {"as before"}
    refused = [row for row in table if row["K-LoRA"] == "refused"]
    assert [(row["engine"], row["held"]) for row in refused] == [("merge", "sequential offload")]
    for row in table:
        if row not in refused:
            assert "" not in [row[column] for column in row if column], "every column is told"
            assert row["peak, MB"] == "not run: needs cuda" and int(row["switch, ms (layers)"].split("(")[1][:-1]) > 0


@contextlib.contextmanager
def leaves_a_weight_changed(pipe: Any, *pair: Path, **given: Any) -> Iterator[Any]:
    with rows_klora(pipe, *pair, **given) as run:
        yield run
    with torch.no_grad():
        pipe.unet.time_embedding.linear_1.weight[0, 0] += 1


@contextlib.contextmanager
def takes_the_style_for_the_content(pipe: Any, *pair: Path, **given: Any) -> Iterator[Any]:
    other = {"content": "style"}.get(given.get("method", ""), given.get("method", "klora"))
    with rows_klora(pipe, *pair, **{**given, "method": other}) as run:
        yield run


@contextlib.contextmanager
def draws_plain_images(pipe: Any, *pair: Path, **given: Any) -> Iterator[Any]:
    with rows_klora(pipe, *pair, **{**given, "content_weight": 0.0, "style_weight": 0.0}) as run:
        yield run


rows_klora = rows.klora


@pytest.mark.parametrize(
    ("wrong", "verdicts"),
    [
        (leaves_a_weight_changed, ["weights changed", "the plain image afterwards"]),
        (takes_the_style_for_the_content, ["content is "]),
        (draws_plain_images, ["content is ", "style is ", "klora is ", "too near to tell"]),
    ],
)
def test_what_is_wrong_fails_its_row(
    wrong: Any, verdicts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "klora", wrong)
    out = tmp_path / "table.md"
    assert program.main([*QUICK, "--only", ONE, "--out", str(out)]) == 1
    (row,) = cells(out)
    assert all(verdict in row[""] for verdict in verdicts), row[""]


def test_a_row_that_raises_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = rows.images, []

    def images(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("out of memory\ndetails")
        return real(*given)

    monkeypatch.setattr(rows, "images", images)
    out = tmp_path / "table.md"
    assert program.main([*QUICK, "--only", ONE.replace("bypass", "(merge|bypass)"), "--out", str(out)]) == 1
    assert [row[""] for row in cells(out)] == ["**OutOfMemoryError: out of memory**", "ok"]


def test_a_device_that_is_not_there_and_rows_that_are_none(capsys: pytest.CaptureFixture) -> None:
    assert program.main(["--device", "no such device"]) == 2
    said = capsys.readouterr().err
    assert "finds no device 'no such device'" in said and said.count("\n") == 1
    assert program.main([*QUICK, "--only", "nothing is called this"]) == 1


def test_every_row_has_a_name_of_its_own() -> None:
    wanted = [row.title for row in rows.rows([program.the_toy(), program.random_sdxl(64, True)])]
    assert len(wanted) == len(set(wanted)) == 44
