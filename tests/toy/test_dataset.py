"""Theorems: the drawn pictures follow from their seeds, and no two kinds of them look the same."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from klora_lib.toy import CONTENT, STYLE, dataset, shapes, styles, write_prompt
from klora_lib.toy.train_loras import RECIPES, caption_scene

KINDS = list(product(shapes.OBJECTS, styles.STYLES))


def drawn(thing: str, style: str, seed: int = 0, ground: str = "sky") -> NDArray[np.uint8]:
    colour = None if thing in shapes.SUBJECTS else "red"
    return dataset.draw_picture(dataset.Scene(thing, ground, style, colour), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def all_kinds() -> dict[tuple[str, str], NDArray[np.uint8]]:
    return {kind: drawn(*kind) for kind in KINDS}


def test_a_picture_follows_from_its_seed() -> None:
    for kind in (("fish", "dots"), ("cat", "wash"), ("robot", "mosaic")):
        assert np.array_equal(drawn(*kind, seed=3), drawn(*kind, seed=3))
        assert not np.array_equal(drawn(*kind, seed=3), drawn(*kind, seed=4))


def test_every_object_is_drawn_in_every_style(all_kinds: dict[tuple[str, str], NDArray[np.uint8]]) -> None:
    assert len(shapes.BASE) >= 12 and len(shapes.SUBJECTS) >= 3 and len(styles.LOOKS) >= 3
    for picture in all_kinds.values():
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert picture.std() > 10


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_objects_differ_in_every_style_and_styles_on_every_object(
    all_kinds: dict[tuple[str, str], NDArray[np.uint8]],
) -> None:
    """At one place and on one ground, no two of them are closer than a few grey levels a pixel."""
    for style in styles.STYLES:
        apart = [distance(all_kinds[a, style], all_kinds[b, style]) for a, b in combinations(shapes.OBJECTS, 2)]
        assert min(apart) > 2
    for thing in shapes.OBJECTS:
        apart = [distance(all_kinds[thing, a], all_kinds[thing, b]) for a, b in combinations(styles.STYLES, 2)]
        assert min(apart) > 4


def test_a_style_is_more_than_its_colours() -> None:
    """Between neighbouring pixels, not only over the whole picture: the ground alone tells textures apart."""

    def roughness(look: str) -> float:
        return float(np.abs(np.diff(drawn("ball", look)[:12, :12].astype(float), axis=0)).mean())

    assert roughness("flat") == 0
    assert all(roughness(look) > 5 for look in ("dots", "hatched", "mosaic", "engraved"))


def test_a_subject_wears_its_own_colours_and_any_other_object_the_one_named() -> None:
    rng = np.random.default_rng(0)
    for thing in shapes.OBJECTS:
        scene = dataset.choose_scene(rng, [thing], ["flat"])
        assert (scene.colour is None) == (thing in shapes.SUBJECTS)
        colour = f"{scene.colour} " * bool(scene.colour)
        assert scene.caption == f"a {colour}{thing} on a {scene.ground} background, flat style"
    balls = (dataset.Scene("ball", "cream", "flat", colour) for colour in ("red", "blue"))
    red, blue = (dataset.draw_picture(ball, rng)[32, 32].astype(int) for ball in balls)
    assert red[0] > red[2] + 80 and blue[2] > blue[0] + 80


def test_the_plain_rendering_goes_without_saying() -> None:
    assert dataset.Scene("fish", "sky", "shaded", "red").caption == "a red fish on a sky background"
    assert dataset.PLAIN in styles.BASE


def test_captions_call_loras_by_words_of_their_own() -> None:
    assert set(RECIPES) == {*CONTENT, *STYLE} == {*shapes.SUBJECTS, *styles.LOOKS}
    plain = caption_scene(dataset.Scene("robot", "sky", dataset.PLAIN), subject=True)
    assert plain == write_prompt("robot") == "a sks robot on a sky background"
    assert write_prompt("robot", "neon", "mint") == "a sks robot on a mint background, szn style"
    scene = dataset.Scene("fish", "sky", "neon", "red")
    assert caption_scene(scene, subject=False) == "a red fish on a sky background, szn style"
