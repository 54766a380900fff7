"""What a refused command line says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from klora_lib.cli.main import main


def refused(words: list[str], capsys: Any, out: Path) -> str:
    """The one line on stderr; nothing was written."""
    capsys.readouterr()
    assert main(words) == 2
    heard = capsys.readouterr()
    assert heard.out == "" and heard.err.count("\n") == 1 and heard.err.startswith("klora: ")
    assert not out.exists()
    return heard.err.removeprefix("klora: ").strip()
