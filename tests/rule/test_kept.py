"""Theorems: scores on disk are those that were computed, bit for bit, or not taken; and the disk never fails a job."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klora_lib.rule import energies, scoring
from klora_lib.rule import kept as keeping
from klora_lib.rule.cache import Library
from klora_lib.rule.kept import ScoreFolder
from klora_lib.rule.scoring import Scores
from klora_lib.settings import Settings

from ..pairs import random_layers, write_file

CPU = torch.device("cpu")
Q = ("content", "style", "auto")


def some(seed: int, units: int = 5) -> Scores:
    g = torch.Generator().manual_seed(seed)
    columns = torch.rand(4, units, generator=g, dtype=torch.float64) * 1e-3
    return Scores(tuple(range(1, units + 1)), *columns.unbind(0))


def bits(scores: Scores) -> tuple[Any, ...]:
    columns = [getattr(scores, name).view(torch.int64).tolist() for name in keeping.COLUMNS]
    return scores.k, scores.squared, scores.directions, columns


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    content, style = tmp_path / "subject.safetensors", tmp_path / "painter.safetensors"
    write_file(random_layers(1), content)
    write_file(random_layers(2, rank=3), style)
    return content, style


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a cache" / "klora"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was computed."""
    calls: list[str] = []
    for module, name in ((scoring, "score_units"), (energies, "compute_energies")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    yield calls


def measure(folder: Path | None, paths: tuple[Path, Path], **given: Any) -> Scores:
    """As a program that has just started does."""
    library = Library(kept_in=folder)
    pair = library.pair(*(library.read(path, path.stem) for path in paths))
    return library.measure(pair, Settings(**given), CPU)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("given", [{}, {"k": 3}, {"k": "all"}, {"method": "est"}, {"method": "np"}])
def test_a_new_start_takes_what_is_on_disk_bit_for_bit(
    folder: Path, paths: tuple[Path, Path], computed: list[str], given: dict[str, Any]
) -> None:
    alone = measure(None, paths, **given)
    first = measure(folder, paths, **given)
    assert len(computed) == 2
    second = measure(folder, paths, **given)
    assert len(computed) == 2, "nothing is computed again"
    assert bits(alone)[:2] == bits(first)[:2] == bits(second)[:2]
    assert bits(alone)[3] == bits(first)[3] == bits(second)[3]


def test_each_k_and_the_energies_are_kept_apart(folder: Path, paths: tuple[Path, Path], computed: list[str]) -> None:
    wanted: list[dict[str, Any]] = [{}, {"k": 3}, {"k": 4}, {"k": "all"}, {"method": "est"}]
    alone = [bits(measure(None, paths, **given)) for given in wanted]
    del computed[:]
    for _ in range(2):
        assert [bits(measure(folder, paths, **given)) for given in wanted] == alone
    assert len(computed) == len(entries(folder)) == len(wanted)


def test_another_content_under_the_same_name_is_scored_anew(
    folder: Path, paths: tuple[Path, Path], computed: list[str]
) -> None:
    before = measure(folder, paths)
    write_file(random_layers(9), paths[0])
    after = measure(folder, paths)
    assert len(computed) == 2 and bits(after) != bits(before)
    assert bits(after) == bits(measure(None, paths))


def test_swapped_roles_are_another_question(folder: Path, paths: tuple[Path, Path], computed: list[str]) -> None:
    one, two = measure(folder, paths), measure(folder, (paths[1], paths[0]))
    assert len(computed) == 2 and torch.equal(one.content_topk, two.style_topk)


# --- what is not ours, or not whole ---


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed = {
        "empty": b"", "torn": data[: len(data) // 2], "one byte short": data[:-1], "one byte more": data + b"\0",
        "one bit": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "garbage": os.urandom(len(data)),
        "text": b"hello\nworld\n",
    }  # fmt: skip
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["empty", "torn", "one byte short", "one byte more", "one bit", "garbage", "text"])
def test_a_damaged_file_is_not_taken_and_is_written_anew(
    folder: Path, paths: tuple[Path, Path], computed: list[str], how: str
) -> None:
    whole = bits(measure(folder, paths))
    [path] = entries(folder)
    good = path.read_bytes()
    spoil(path, how)
    assert bits(measure(folder, paths)) == whole
    assert len(computed) == 2 and path.read_bytes() == good
    assert bits(measure(folder, paths)) == whole and len(computed) == 2


@pytest.mark.parametrize("change", [{"code": "another version"}, {"question": ["a", "b", "auto"]}, {"k": [1, 2]}])
def test_a_sound_file_that_answers_something_else_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    """Of another version of our code; of another question, under this one's name; of fewer units."""
    kept = ScoreFolder(tmp_path, time.time())
    kept.keep(Q, some(1))
    path, found = kept.place(Q), kept.find(Q, 5)
    assert found is not None and bits(found) == bits(some(1))
    line, _, numbers = path.read_bytes().partition(b"\n")[2].partition(b"\n")
    body = json.dumps(json.loads(line) | change).encode() + b"\n" + numbers
    path.write_bytes(hashlib.blake2b(body).hexdigest().encode() + b"\n" + body)
    assert kept.find(Q, 5) is None


def install_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a package that say they are old, written now."""
    for name in ("rule/kept.py", "rule/scoring.py", "lora/keys.py", "numerics.py", "devices.py"):
        path = folder / "klora_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
        os.utime(path, (1, 1))
    monkeypatch.setattr(keeping, "__file__", str(folder / "klora_lib" / "rule" / "kept.py"))
    return folder / "klora_lib"


def test_the_code_that_scores_is_part_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install_another(tmp_path, monkeypatch)
    codes = {ScoreFolder(tmp_path, time.time()).read_code()}
    for name in ("rule/scoring.py", "lora/keys.py", "numerics.py"):
        package.joinpath(name).write_text("two")
        os.utime(package / name, (1, 1))
        codes.add(ScoreFolder(tmp_path, time.time()).read_code())
    assert len(codes) == 4


def test_code_that_was_updated_under_a_running_program_keeps_nothing(
    folder: Path, paths: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What runs is then not what is on disk: also where a reload of the page makes a new Library of the code that runs, and
    where the new files have the times that they had elsewhere."""
    install_another(tmp_path, monkeypatch)
    library = Library(kept_in=folder)
    library.score(library.pair(*library.read_both(*((path, path.stem) for path in paths))), "auto", CPU)
    assert not entries(folder) and "has a time after its start" in capsys.readouterr().err


# --- how much ---


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    kept = ScoreFolder(tmp_path, time.time(), most=3)
    stranger = tmp_path / "notes.txt"
    stranger.write_text("not ours")
    for i in range(3):
        kept.keep((i,), some(i))
        os.utime(kept.place((i,)), (i + 1, i + 1))
    assert kept.find((0,), 5) is not None  # used: it is not the next to go
    kept.keep((3,), some(3))
    there = [i for i in range(4) if kept.find((i,), 5) is not None]
    assert there == [0, 2, 3] and stranger.exists()


def test_files_of_a_time_when_the_clock_was_wrong_go_first(tmp_path: Path) -> None:
    kept = ScoreFolder(tmp_path, time.time(), most=2)
    for i in range(2):
        kept.keep((i,), some(i))
        os.utime(kept.place((i,)), (time.time() + 1e8, time.time() + 1e8))
    kept.keep(Q, some(7))
    assert kept.find(Q, 5) is not None and len(entries(tmp_path)) == 2


def test_what_a_process_left_half_written_goes_after_a_while(tmp_path: Path) -> None:
    kept = ScoreFolder(tmp_path, time.time())
    old, new = (tmp_path / f"x{keeping.ENDING}.{name}.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    kept.keep(Q, some(1))
    assert not old.exists() and new.exists()


def test_a_full_size_pair_is_a_few_kilobytes(tmp_path: Path) -> None:
    kept = ScoreFolder(tmp_path, time.time())
    kept.keep(Q, some(1, 560))
    assert kept.place(Q).stat().st_size < 24_000


# --- a disk that does not do what it is asked ---


@pytest.mark.parametrize("trouble", ["a file in its place", "a folder in the file's place", "full", "cannot be renamed"])
def test_a_folder_that_cannot_be_used_fails_nothing_and_is_told_once(
    folder: Path, paths: tuple[Path, Path], trouble: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    alone = measure(None, paths)
    library = Library(kept_in=folder)
    if trouble == "a file in its place":
        folder.parent.mkdir()
        folder.write_text("")
    elif trouble == "a folder in the file's place":
        monkeypatch.setattr(ScoreFolder, "place", lambda self, question: self.path)
    elif trouble == "full":
        monkeypatch.setattr(keeping, "write_whole", fail)
    else:
        monkeypatch.setattr(os, "replace", fail)
    pair = library.pair(*(library.read(path, path.stem) for path in paths))
    assert bits(library.score(pair, "auto", CPU)) == bits(alone)
    library.score(pair, 3, CPU)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"K-LoRA: scores are not kept in {str(folder)!r} (")
    assert not folder.is_dir() or not entries(folder)


def test_a_pair_that_depends_on_the_model_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(kept_in=folder)
    pair = type("Relative", (), {"relative": True, "units": ()})()
    monkeypatch.setattr(scoring, "score_units", lambda *_: some(1))
    monkeypatch.setattr(energies, "compute_energies", lambda *_: some(1))
    for method in ("klora", "est"):
        library.measure(pair, Settings(method=method), CPU, weights=lambda unit, device: None)
    assert not folder.exists()


def test_without_a_folder_nothing_is_written(paths: tuple[Path, Path], computed: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(keeping, "write_whole", None)
    for _ in range(2):
        measure(None, paths)
    assert len(computed) == 2
