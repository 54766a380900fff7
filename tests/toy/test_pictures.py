"""Theorem of the pictures: what docs/evaluation.md found by a clear margin holds, and not of the inverted choice."""

from __future__ import annotations

import pytest

from klora_lib.evaluation import toy
from klora_lib.evaluation.report import EXCHANGED, METHODS, measured
from klora_lib.evaluation.run import here
from klora_lib.evaluation.table import table

# diffusers' Euler makes numpy arrays of tensors in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SEEDS = 2
ROWS = {name: METHODS[name] for name in ("content alone", "style alone", "direct", "klora, s", EXCHANGED)}
Means = dict[str, dict[str, float]]  # row -> column -> mean over all pairs and seeds


@pytest.fixture(scope="module")
def means() -> Means:
    drawn = measured({"methods": ROWS}, toy.pairs(), SEEDS, {None: here(toy.worker)}, {})["methods"]
    return {name: {column: cell.mean for column, cell in row.items()} for name, row in table(drawn).items()}
