"""Theorem of the pictures: what docs/evaluation.md found by a clear margin holds, and not of the inverted choice."""

from __future__ import annotations

import pytest
import torch

from klora_lib import toy
from klora_lib.evaluation import toy as evaluation
from klora_lib.evaluation.report import EXCHANGED, METHODS, make_tasks
from klora_lib.toy.judge import LOOKS, THINGS

# diffusers' Euler makes numpy arrays of tensors in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SEEDS = 2
ROWS = ("content alone", "direct", "klora, s", EXCHANGED)
Means = dict[str, tuple[float, float]]  # row -> the judge's mean probability of the subject, and of the style


@pytest.fixture(scope="module")
def means() -> Means:
    """Over the pairs that have a true picture, and the seeds."""
    judge, worker, found, known = toy.load_judge(), evaluation.make_worker(), {}, {}
    for row in ROWS:
        subjects, styles = [], []
        for task in make_tasks(METHODS[row], evaluation.list_true_pairs(), SEEDS):
            drawn = row, task.content.name, "" if row == "content alone" else task.style.name  # which is not in the picture
            if drawn not in known:
                known[drawn] = judge.score(evaluation.read_pixels(worker.draw_images(task, task.seeds)))
            things, looks = known[drawn]
            subjects.append(things[:, THINGS.index(task.content.name)])
            styles.append(looks[:, LOOKS.index(task.style.name)])
        found[row] = float(torch.cat(subjects).mean()), float(torch.cat(styles).mean())
    return found


def has_both(means: Means, row: str) -> bool:
    """More of the subject than where both are added, and more of the style than the content LoRA alone."""
    return means[row][0] > means["direct"][0] + 0.05 and means[row][1] > means["content alone"][1] + 0.03


def test_klora_has_both(means: Means) -> None:
    assert has_both(means, "klora, s"), means


def test_the_inverted_choice_has_not(means: Means) -> None:
    """So the theorem above would hear of a rule that lays down the style first and the subject later."""
    assert not has_both(means, EXCHANGED), means
    assert means["klora, s"][1] > means[EXCHANGED][1] + 0.03
