"""Theorem of the pictures: what docs/evaluation.md found by a clear margin holds, and not of the inverted choice."""

from __future__ import annotations

import pytest

from klora_lib.evaluation import toy
from klora_lib.evaluation.report import EXCHANGED, METHODS, measure_tables
from klora_lib.evaluation.run import make_local_workers
from klora_lib.evaluation.table import make_table

# diffusers' Euler makes numpy arrays of tensors in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SEEDS = 2
ROWS = {name: METHODS[name] for name in ("direct", "klora, s", EXCHANGED)}
Means = dict[str, dict[str, float]]  # row -> column -> mean over all pairs and seeds, in 0…1


@pytest.fixture(scope="module")
def means() -> Means:
    workers = {None: make_local_workers(toy.make_worker)}
    drawn = measure_tables({"methods": ROWS}, {"methods": toy.list_true_pairs()}, SEEDS, workers, {})["methods"]
    return {name: {column: cell.mean for column, cell in row.items()} for name, row in make_table(drawn).items()}


def better_than_direct(means: Means, row: str) -> bool:
    """More of both at once, and the subject is not what pays for it."""
    ours, direct = means[row], means["direct"]
    return ours[toy.BOTH] > direct[toy.BOTH] + 0.02 and ours["subject"] > direct["subject"] + 0.05


def test_klora_is_better_than_adding_both(means: Means) -> None:
    assert better_than_direct(means, "klora, s"), means


def test_the_inverted_choice_is_not(means: Means) -> None:
    """So the theorem above would hear of a rule that lays down the style first and the subject later."""
    assert not better_than_direct(means, EXCHANGED), means
    assert means["klora, s"][toy.BOTH] > means[EXCHANGED][toy.BOTH] + 0.03
