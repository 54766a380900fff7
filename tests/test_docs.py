"""The documents: what they link to and show is there, and the entry for the index of extensions is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("klora_lib/**/*.md")})
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def find_headings(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def find_links(document: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each link that stays in the repository."""
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" not in link and not link.startswith("mailto:"):
            path, _, anchor = link.partition("#")
            yield (document.parent / path).resolve() if path else document, anchor


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in find_links(document):
        assert path.exists(), f"{document.name} links to {path}"
        assert not anchor or anchor in find_headings(path.read_text(encoding="utf-8")), f"{path.name} has no #{anchor}"


def test_the_entry_for_the_index_of_extensions() -> None:
    """As https://github.com/AUTOMATIC1111/stable-diffusion-webui-extensions wants it; OWNER is for who publishes it."""
    entry = json.loads((REPOSITORY / "docs" / "extension-index.json").read_text(encoding="utf-8"))
    assert list(entry) == ["name", "url", "description", "added", "tags"]
    assert entry["url"].startswith("https://github.com/") and entry["url"].endswith(".git")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["added"]) and len(entry["description"]) < 250
    known = {"script", "tab", "dropdown", "training", "models", "UI related", "prompting", "editing", "manipulations"}
    assert entry["tags"] and set(entry["tags"]) <= known  # of those that the index has; not "online": nothing is fetched
