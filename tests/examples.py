"""The examples of docs/api.md, as tests run them."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "api.md"
WEBUI = "http://127.0.0.1:7860"  # what they call it


def read_examples(language: str) -> list[str]:
    """``python`` or ``sh``, in the document's order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def read_commands() -> list[str]:
    """Each curl in one line."""
    return [line for block in read_examples("sh") for line in block.replace("\\\n", " ").splitlines()]
