"""Theorems: what is on disk now is what is used; nothing is read, paired or scored twice for the same files and K."""

from __future__ import annotations

import gc
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from klora_lib.errors import LoraFileError
from klora_lib.lora import file as lora_files
from klora_lib.rule import energies, pairing, scoring
from klora_lib.rule import explain as explaining
from klora_lib.rule.cache import Library
from klora_lib.rule.explain import explain
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import Settings

from ..pairs import random_layers, write_file

CPU = torch.device("cpu")


class Counted:
    """The work behind the cache, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        where = {"read_lora": lora_files, "make_pair": pairing, "score_units": scoring}
        self.calls = dict.fromkeys(where, 0)
        for name, module in where.items():
            monkeypatch.setattr(module, name, self.counting(name, getattr(module, name)))

    def counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.calls[name] += 1
            return function(*args)

        return counted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    content, style = tmp_path / "subject.safetensors", tmp_path / "painter.safetensors"
    write_file(random_layers(1), content)
    write_file(random_layers(2, rank=3), style)
    yield content, style


def plan(library: Library, paths: tuple[Path, Path], **given: Any) -> Plan:
    """What a job does with a library."""
    settings = Settings(**given)
    pair = library.pair(*(library.read(path, path.stem) for path in paths))
    return make_plan(pair, library.score(pair, settings.k, CPU), settings, 20)


def overwrite(path: Path, seed: int) -> None:
    """Another LoRA of the same size under the same name, in the same inode, one tick of the clock later."""
    before = path.stat()
    other = path.with_suffix(".other")
    write_file(random_layers(seed, rank=3 if path.stem == "painter" else 2), other)
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_a_change_of_the_rule_scores_nothing_again(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    plan(library, paths)
    for given in (
        dict(alpha=1.0), dict(alpha=0.3, beta=2.0), dict(beta=0.0), dict(gamma=0.7), dict(gamma="mean-ratio"),
        dict(scale="s*"), dict(layers="attention"), dict(layers="attention-only"), dict(method="topk"),
        dict(content_weight=0.5, style_te_weight=2.0), dict(progress="noise"), dict(engine="bypass"),
    ):  # fmt: skip
        plan(library, paths, **given)
    assert counted.calls == {"read_lora": 2, "make_pair": 1, "score_units": 1}


def test_another_k_scores_again_once(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    for k in ("auto", 3, "auto", 3, 4):
        plan(library, paths, k=k)
    assert counted.calls == {"read_lora": 2, "make_pair": 1, "score_units": 3}


def test_a_file_overwritten_in_place_is_read_again(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    first = plan(library, paths)
    overwrite(paths[0], seed=9)
    second = plan(library, paths)
    assert counted.calls == {"read_lora": 3, "make_pair": 2, "score_units": 2}
    assert not torch.equal(first.facts.scores.content_abs, second.facts.scores.content_abs)
    assert torch.equal(first.facts.scores.style_abs, second.facts.scores.style_abs)
    fresh = plan(Library(), paths)
    assert torch.equal(second.facts.scores.content_abs, fresh.facts.scores.content_abs)
    assert second.gamma == fresh.gamma


def test_a_file_replaced_by_renaming_is_read_again(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    before = library.read(paths[0], "subject")
    other = paths[0].with_suffix(".new")
    write_file(random_layers(9), other)
    os.utime(other, ns=(0, paths[0].stat().st_mtime_ns))
    other.replace(paths[0])
    assert library.read(paths[0], "subject").digest != before.digest


def test_a_file_touched_but_unchanged_is_read_but_not_scored_again(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    plan(library, paths)
    os.utime(paths[0], ns=(0, 0))
    plan(library, paths)
    assert counted.calls["read_lora"] == 3
    assert counted.calls["score_units"] == 1


def test_swapped_roles_are_another_pair(paths: tuple[Path, Path], counted: Counted) -> None:
    library = Library()
    one, two = plan(library, paths), plan(library, (paths[1], paths[0]))
    assert counted.calls == {"read_lora": 2, "make_pair": 2, "score_units": 2}
    assert torch.equal(one.facts.scores.content_topk, two.facts.scores.style_topk)


def test_messages_call_a_file_as_they_were_asked_to(paths: tuple[Path, Path]) -> None:
    library = Library()
    assert [library.read(paths[0], name).name for name in ("a", "b", "a")] == ["a", "b", "a"]


def test_a_file_that_vanished_is_refused_though_it_was_read_before(paths: tuple[Path, Path]) -> None:
    library = Library()
    library.read(paths[0], "subject")
    paths[0].unlink()
    with pytest.raises(LoraFileError, match="'subject' does not exist"):
        library.read(paths[0], "subject")


def test_a_file_that_was_broken_is_read_again_when_mended(paths: tuple[Path, Path]) -> None:
    library, whole = Library(), paths[0].read_bytes()
    paths[0].write_bytes(whole[:-1])
    with pytest.raises(LoraFileError):
        library.read(paths[0], "subject")
    paths[0].write_bytes(whole)
    assert library.read(paths[0], "subject").modules


# --- how much is kept ---


@pytest.fixture
def five(tmp_path: Path) -> list[Path]:
    """Files of one size."""
    paths = [tmp_path / f"lora{i}.safetensors" for i in range(5)]
    for i, path in enumerate(paths):
        write_file(random_layers(i), path)
    return paths


def test_files_are_kept_up_to_so_many_bytes(five: list[Path], counted: Counted) -> None:
    size = five[0].stat().st_size
    library = Library(most=3 * size + size // 2)
    for path in five[:4]:
        library.read(path, path.stem)
    assert [file.name for file in library.files.values()] == ["lora1", "lora2", "lora3"]
    library.read(five[1], "lora1")  # used again: it is not the next to go
    library.read(five[4], "lora4")
    assert [file.name for file in library.files.values()] == ["lora3", "lora1", "lora4"]
    assert counted.calls["read_lora"] == 5 and set(library.sizes) == set(library.files)


def test_the_pair_in_use_stays_however_large_it_is(five: list[Path], counted: Counted) -> None:
    library = Library(most=1)
    for _ in range(3):
        plan(library, (five[0], five[1]))
    assert counted.calls == {"read_lora": 2, "make_pair": 1, "score_units": 1}


def test_a_file_that_has_gone_is_kept_alive_by_nothing(five: list[Path]) -> None:
    """Neither by a pair made of it nor by its scores."""
    library = Library(most=1)
    gone = weakref.ref(library.read(five[0], "lora0"))
    plan(library, (five[0], five[1]))
    plan(library, (five[2], five[3]))
    gc.collect()
    assert gone() is None and len(library.pairs) == 1


def test_what_is_kept_is_bounded_and_the_least_used_goes() -> None:
    library, shelf = Library(), OrderedDict[Hashable, str]()
    made: list[str] = []

    def get(key: str) -> str:
        return library.get_or_make(shelf, key, 2, lambda: made.append(key) or key)

    assert [get(key) for key in "abacab"] == list("abacab")
    assert made == list("abcb")
    assert list(shelf) == list("ab")


def test_work_that_fails_leaves_nothing_behind() -> None:
    library, shelf = Library(), OrderedDict[Hashable, int]()
    with pytest.raises(ZeroDivisionError):
        library.get_or_make(shelf, "a", 2, lambda: 1 // 0)
    assert not shelf and not library.turns
    assert library.get_or_make(shelf, "a", 2, lambda: 1) == 1


# --- two threads at once: the web API answers from one while a job draws in another ---


def test_what_two_threads_want_is_made_once() -> None:
    library, shelf = Library(), OrderedDict[Hashable, int]()
    begun, go, made = Event(), Event(), []

    def make() -> int:
        begun.set()
        assert go.wait(60)
        made.append(1)
        return 7

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(library.get_or_make, shelf, "a", 2, make) for _ in range(4)]
        assert begun.wait(60)
        assert library.get_or_make(shelf, "b", 2, lambda: 5) == 5  # who wants another thing does not wait
        go.set()
        assert [each.result(60) for each in found] == [7] * 4
    assert made == [1] and not library.turns


def test_if_one_thread_fails_another_that_waits_makes_it() -> None:
    library, shelf = Library(), OrderedDict[Hashable, int]()
    begun, go = Event(), Event()

    def fail() -> int:
        begun.set()
        assert go.wait(60)
        raise MemoryError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(library.get_or_make, shelf, "a", 2, fail)
        assert begun.wait(60)
        second = pool.submit(library.get_or_make, shelf, "a", 2, lambda: 3)
        go.set()
        assert second.result(60) == 3
        with pytest.raises(MemoryError):
            first.result(60)
    assert not library.turns


def test_threads_that_share_a_small_library_all_get_what_is_true(five: list[Path]) -> None:
    """Files go and come back all the time, as there is room for two."""
    library, pairs = Library(most=1), [(one, two) for one in five for two in five if one != two]
    alone = {pair: plan(Library(), pair).facts.scores.content_topk.tolist() for pair in pairs}
    with ThreadPoolExecutor(6) as pool:
        found = [(pair, pool.submit(plan, library, pair)) for pair in pairs * 3]
        assert all(each.result(120).facts.scores.content_topk.tolist() == alone[pair] for pair, each in found)
    assert len(library.files) <= 6 and len(library.pairs) <= 2 and not library.turns


def test_a_report_is_the_same_with_what_is_kept(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    pair = library.pair(*(library.read(path, path.stem) for path in paths))
    planned = plan(library, paths)
    first = library.explain(pair, planned, 20)
    assert first == explain(planned, 20)
    monkeypatch.setattr(explaining, "measure_closeness", None)
    monkeypatch.setattr(energies, "compute_energies", None)
    assert library.explain(pair, planned, 20) == first
