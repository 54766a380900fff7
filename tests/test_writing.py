"""Theorem: a file is written whole or not at all, and nothing stays beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from klora_lib.writing import write_whole


def test_what_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"one", b"other"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_it_may_be_read_by_whom_any_new_file_may_be_read_by(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_after_an_error_all_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"one")

    def fail(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"other")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]
