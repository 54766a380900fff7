"""What other programs may rely on: the public names of the package, and the README's table of settings."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from klora_lib.settings import FIELDS, Field

README = Path(__file__).parents[1] / "README.md"
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
