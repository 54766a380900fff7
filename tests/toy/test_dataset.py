"""Theorems: pictures follow from their seeds; what was fetched is what was pinned; nothing of a LoRA's is learned before."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from klora_lib.errors import HostError
from klora_lib.toy import CONTENT, STYLE, dataset, emoji, subjects, train_vae, write_prompt
from klora_lib.toy.train_loras import RECIPES

from .drawn import draw_shape, write_drawings

ICONS = {"width": 8, "icons": {"dot": {"body": '<circle cx="4" cy="4" r="2" fill="currentColor"/>', "height": 8}}}


def pack(icons: Any) -> bytes:
    """A package as npm has it, with one icons.json."""
    data, out = json.dumps(icons).encode(), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A registry with one pinned package; the addresses that were asked for."""
    asked: list[str] = []
    data = pack(ICONS)
    pin = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    monkeypatch.setitem(emoji.SETS, "noto", emoji.Package("1.0.0", pin, "", ""))

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(data)

    monkeypatch.setattr(emoji.urllib.request, "urlopen", answer)
    return asked


def test_a_set_is_fetched_once(registry: list[str], tmp_path: Path) -> None:
    assert [emoji.fetch_set("noto", tmp_path) for _ in range(2)] == [ICONS, ICONS]
    assert registry == ["https://registry.npmjs.org/@iconify-json/noto/-/noto-1.0.0.tgz"]


def test_another_file_than_the_pinned_one_is_refused(
    registry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(emoji.SETS, "noto", emoji.Package("1.0.0", "sha512-AAAA", "", ""))
    with pytest.raises(HostError, match="not the pinned file"):
        emoji.fetch_set("noto", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_registry_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> io.BytesIO:
        raise OSError("no route to host")

    monkeypatch.setattr(emoji.urllib.request, "urlopen", refuse)
    with pytest.raises(HostError, match=r"noto-.*tgz cannot be fetched \(no route to host\)"):
        emoji.fetch_set("noto", tmp_path)


def test_an_icon_is_drawn_in_its_ink_on_nothing() -> None:
    drawn = emoji.draw_icon(ICONS, "dot", "#ff0000")
    assert drawn.shape == (emoji.SIDE, emoji.SIDE, 4)
    assert drawn[64, 64].tolist() == [255, 0, 0, 255] and drawn[2, 2, 3] == 0
    with pytest.raises(ValueError, match="bad cannot be drawn"):
        emoji.draw_icon({"icons": {"bad": {"body": "<circle"}}}, "bad", "black")


def test_drawings_are_kept(tmp_path: Path) -> None:
    made = write_drawings(tmp_path)
    found = emoji.draw_sets(tmp_path)
    assert list(found) == list(made) and all(np.array_equal(found[row], made[row]) for row in made)


def test_every_set_has_its_attribution() -> None:
    text = (Path(emoji.__file__).parent / "weights" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name, package in emoji.SETS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert all(fact in row for fact in (package.version, package.licence, *package.author.split(", ")))


def test_a_drawing_is_put_where_it_is_said() -> None:
    drawing = draw_shape(1)  # a rectangle
    picture = dataset.place_drawing(drawing, (160, 208, 240), 0.5, np.array([0.0, 0.0]))
    assert picture.shape == (emoji.SIDE, emoji.SIDE, 3) and picture.dtype == np.uint8
    assert picture[:32].reshape(-1, 3).tolist() == [[160, 208, 240]] * (32 * emoji.SIDE)  # half the size: the rest is ground
    moved = dataset.place_drawing(drawing, (160, 208, 240), 0.5, np.array([0.25, 0.0]))
    assert np.array_equal(moved[:, 32:], picture[:, :-32])


def test_a_picture_follows_from_its_seed() -> None:
    scene = dataset.Scene("octopus", "octopus", subjects.PLAIN, "sky")
    drawings = {(subjects.PLAIN, "octopus"): draw_shape(2)}
    first, again, other = (dataset.draw_scene(scene, drawings, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_nothing_of_a_loras_is_learned_before() -> None:
    assert len(subjects.BASE) >= 30 and len(CONTENT) >= 6 and len(STYLE) >= 5
    assert not {*subjects.SUBJECTS} & {*subjects.BASE, *subjects.BASE.values()}
    assert not {*subjects.STYLES.values()} & {*subjects.BASE_STYLES}
    assert not {*subjects.SUBJECTS} & {*subjects.list_others([*subjects.SUBJECTS, "airplane"])}


def test_the_autoencoder_learns_from_all_sets_but_one_and_from_no_loras_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drawings(tmp_path)
    seen: set[tuple[str, str]] = set()
    monkeypatch.setattr(dataset, "draw_scene", lambda scene, *more: seen.add((scene.source, scene.emoji)) or np.zeros(3))
    train_vae.draw_pictures(600, tmp_path)
    assert {source for source, _ in seen} == {*emoji.SETS} - {subjects.UNSEEN} and subjects.UNSEEN in emoji.SETS
    assert not {name for _, name in seen} & {*subjects.SUBJECTS}


def test_things_are_single_things() -> None:
    names = ["airplane", "flag-for-japan", "woman-running", "pear", "soon-arrow", "thermometer"]
    assert subjects.list_things(names) == ["airplane", "pear", "thermometer"]


def test_a_true_picture_is_drawn_after_the_subjects_own_drawing() -> None:
    truths = subjects.list_truths()
    assert truths["octopus", "lineart"] == ("fluent-emoji-high-contrast", "octopus")
    assert truths["cat", "monotone"] == ("emojione-monotone", "cat")
    assert ("cat", "lineart") not in truths and len(truths) >= 8


def test_captions_call_loras_by_words_of_their_own() -> None:
    assert set(RECIPES) == {*CONTENT, *STYLE}
    assert dataset.Scene("automobile", "car", "noto", "sky").caption == "a car on a sky background, noto style"
    assert dataset.Scene("automobile", "car", subjects.PLAIN, "sky").caption == "a car on a sky background"
    assert write_prompt("octopus") == "a sks octopus on a sky background"
    assert write_prompt("octopus", "mint") == "a sks octopus on a mint background"
