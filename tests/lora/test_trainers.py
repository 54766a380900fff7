"""Theorem: files of any two trainers, on one architecture, share every layer; docs/files.md has the same table."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.rule.pairing import make_pair

from ..trainers import LAYERS, TRAINERS, Cell, table, tensors

DOCS = Path(__file__).parents[2] / "docs" / "files.md"
CELLS = [
    pytest.param(name, cell, id=f"{trainer}-{name}-{i}")
    for trainer, cells in TRAINERS.items()
    for name, ways in cells.items()
    for i, cell in enumerate(ways)
]


def file_of(architecture: str, cell: Cell) -> LoraFile:
    return lora_file(tensors(architecture, cell), "x")


@pytest.mark.parametrize(("architecture", "cell"), CELLS)
def test_every_cell_is_read_and_meets_every_other_of_its_architecture(architecture: str, cell: Cell) -> None:
    file = file_of(architecture, cell)
    assert file.unknown == () and dict(file.added) == {} and dict(file.text) == {}
    for others in TRAINERS.values():
        for other in others.get(architecture, []):
            for pair in (make_pair(file, file_of(architecture, other)), make_pair(file_of(architecture, other), file)):
                assert [unit.name for unit in pair.units if not unit.shared] == []
                assert sum(unit.shape[0] for unit in pair.units) == sum(LAYERS[architecture][1].values())


def test_architectures_do_not_meet_by_accident() -> None:
    """Of two architectures in the makers' or in diffusers' names, never all layers are the same."""
    layers = {(name, whose): set(file_of(name, ("transformer.", whose, ("lora_B.weight", "lora_A.weight", None))).modules)
              for name, whose in product(LAYERS, (0, 1))}  # fmt: skip
    for (one, other) in product(layers, layers):
        if one[0] != other[0]:
            assert layers[one] != layers[other]


def test_the_table_in_docs_is_this_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.partition("<!-- trainers -->\n")[2].partition("<!-- /trainers -->")[0] == table()
