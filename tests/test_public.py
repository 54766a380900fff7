"""What others may rely on: the package's public names, the README's table and links, the entry for the WebUI's index."""

from __future__ import annotations

import importlib
import json
import re
from datetime import date
from pathlib import Path

import pytest

from klora_lib.settings import FIELDS, Field

README = Path(__file__).parents[1] / "README.md"
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)")  # to a file of the repository, or a heading in one
PUBLIC = {
    "klora_lib.diffusers": {"Library", "Run", "klora"},
    "klora_lib.map": {"draw_plan", "draw_svg"},
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_exactly_these(module: str) -> None:
    names = importlib.import_module(module).__all__
    assert set(names) == PUBLIC[module] and all(hasattr(importlib.import_module(module), name) for name in names)


def test_the_package_says_that_it_is_typed() -> None:
    assert (README.parent / "klora_lib" / "py.typed").exists()


# --- the README's table ---


def row(field: Field) -> str:
    default = {"beta": "0.5 (0.85·α for `s*`)", "content": "", "style": ""}.get(field.name)
    if default is None:
        default = "the weight" if field.default is None else f"`{field.default}`"
    return f"| `{field.name}` | {default} | {field.accepts} | {field.help} |"


def test_the_readmes_table_is_the_settings_table() -> None:
    text = README.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- settings -->\n")
    table, end, _ = rest.partition("<!-- /settings -->")
    wanted = "\n".join(["| setting | default | takes | meaning |", "|---|---|---|---|", *map(row, FIELDS)])
    assert end and table.strip() == wanted


# --- the entry for the WebUI's index of extensions ---

# as the index's own check has it: the keys, and the tags of its tags.json
KEYS = ["name", "url", "description", "added", "tags"]
TAGS = {
    "script", "localization", "tab", "dropdown", "ads", "training", "models", "UI related", "prompting", "editing",
    "manipulations", "online", "animation", "query", "science", "extras",
}  # fmt: skip


def test_the_entry_for_the_index_is_valid_and_says_what_the_readme_says() -> None:
    entry = json.loads((README.parent / "docs" / "extension-index.json").read_text(encoding="utf-8"))
    title, sentence = README.read_text(encoding="utf-8").split("\n\n")[:2]
    assert list(entry) == KEYS
    assert set(entry["tags"]) <= TAGS and "online" not in entry["tags"], "it connects to no server"
    assert re.fullmatch(r"https://\S+\.git", entry["url"]) and date.fromisoformat(entry["added"])
    assert title == f"# {entry['name']} for WebUI" and sentence == entry["description"]


def find_anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_and_heading_that_the_documents_name_is_there() -> None:
    documents = [README, *(README.parent / "docs").glob("*.md"), README.parent / "CONTRIBUTING.md"]
    links = [(page, link) for page in documents for link in LINK.findall(page.read_text(encoding="utf-8"))]
    missing = []
    for page, link in links:
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        if not there.exists() or (anchor and anchor not in find_anchors(there)):
            missing.append(f"{page.name}: {link}")
    assert len(links) > 20 and missing == []
