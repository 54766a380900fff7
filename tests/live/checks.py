"""What the live tests compare, and that the comparison says something."""

from __future__ import annotations

import numpy as np

from .host import Host, Result, difference
from .jobs import Pair, klora, plain, reference

FAR = 10  # of 255: pictures that differ at least so much somewhere are different pictures


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a, b))


def largest_difference(a: Result, b: Result) -> int:
    assert len(a.images) == len(b.images)
    return max(difference(x, y) for x, y in zip(a.images, b.images, strict=True))


def switching(choices: dict[str, list[str]]) -> list[list[int]]:
    """The calls at which a layer's choice changes, for each layer that changes in this pass."""
    calls = [[i for i in range(1, len(row)) if row[i] != row[i - 1]] for row in choices.values()]
    return [row for row in calls if row]


def assert_reference_at_work(passes: list[dict], count: int) -> None:
    """It wrote weights, and in every pass layers switched, at different calls."""
    assert len(passes) == count
    for one in passes:
        assert one["largest_change"] > 0.01
        switches = switching(one["choices"])
        assert len(switches) >= 10
        assert len({call for row in switches for call in row}) >= 2
        assert one["margin"] > 1e-6, "a choice so close that rounding decides it: take other files"


def assert_like_reference(
    host: Host,
    pair: Pair,
    settings: dict | None = None,
    within: int = 1,
    passes: int = 1,
    klora_prompt: str = "",
    **fields: object,
) -> Result:
    """K-LoRA's images are the brute force's, and not those without LoRA. `klora_prompt` is for K-LoRA's prompt only."""
    expected = host.run(reference(host.lora, pair, settings, **fields))
    assert_reference_at_work(host.reference(), passes)
    settings = {k: v for k, v in (settings or {}).items() if not (klora_prompt and k.endswith("_weight"))}
    job = klora(pair, settings, **fields)
    job["prompt"] += klora_prompt
    got = host.run(job)
    assert difference(expected.image, host.known_image(plain(**fields))) > FAR
    assert largest_difference(got, expected) <= within
    return got
