"""Each method that is not the paper's own draws what a brute force draws, in every family and by either engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from klora_lib.diffusers import klora
from klora_lib.errors import HostError, PairError
from klora_lib.rule.cache import Library

from ..pairs import scaled
from . import methods
from .loras import dialect_of, layers_of, write_dialect
from .methods import WEIGHTS, both, written
from .pipes import FAMILIES, image
from .test_images import CLOSE, Files

STEPS = 6
GIVEN = {"content_weight": WEIGHTS[0], "style_weight": WEIGHTS[1]}
UPDATES: dict[str, Callable[..., methods.Update]] = {
    "est": methods.est,
    "np": methods.np,
    "ties": methods.ties,
    "average": lambda c, s: methods.average(c, s, STEPS, (2, 3)),
}


LIBRARY = Library()


def drawn(pipe: Any, pair: tuple[Path, Path], **settings: Any) -> torch.Tensor:
    with klora(pipe, *pair, library=LIBRARY, **{**GIVEN, **settings}):
        return image(pipe, steps=STEPS)


@pytest.fixture(scope="module")
def known(files: Files) -> Callable[..., torch.Tensor]:
    """A method's image with the usual settings and files, drawn once: others are compared with it."""
    images: dict[tuple[str, str], torch.Tensor] = {}

    def get(pipe: Any, family: str, method: str) -> torch.Tensor:
        if (family, method) not in images:
            images[family, method] = drawn(pipe, files(family), method=method)
        return images[family, method]

    return get


def by_hand(family: str, make: Callable[..., methods.Update], pair: tuple[Path, Path], **given: Any) -> torch.Tensor:
    other = FAMILIES[family]()
    update = make(*both(other, pair), **given)
    with written(other, update, STEPS) as calls:
        theirs = image(other, steps=STEPS)
    assert len(calls) == STEPS
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", UPDATES)
def test_a_method_is_the_brute_force_reference(
    method: str, family: str, make: Callable, files: Files, known: Callable[..., torch.Tensor]
) -> None:
    pipe, pair = make(family), files(family)
    ours = drawn(pipe, pair, method=method)
    assert torch.allclose(ours, by_hand(family, UPDATES[method], pair), **CLOSE)
    assert not torch.allclose(ours, known(pipe, family, "direct"), atol=0.02)
    assert not torch.allclose(ours, known(pipe, family, "klora"), atol=0.02), "the paper's rule draws something else"


@pytest.mark.parametrize(
    ("method", "given"),
    [("est", {"alpha": 0.7, "beta": 0.8}), ("np", {"mu": 4.0}), ("np", {"mu": 1e9}), ("ties", {"density": 0.6})],
)
def test_and_with_its_settings(
    method: str, given: dict[str, float], make: Callable, files: Files, known: Callable[..., torch.Tensor]
) -> None:
    pipe, pair = make("sdxl"), files("sdxl")
    ours = drawn(pipe, pair, method=method, **given)
    assert torch.allclose(ours, by_hand("sdxl", UPDATES[method], pair, **given), **CLOSE)
    assert not torch.allclose(ours, known(pipe, "sdxl", method), atol=0.02)


def test_blora_is_sdxls_two_blocks(make: Callable, files: Files) -> None:
    pipe, pair = make("sdxl"), files("sdxl")
    ours = drawn(pipe, pair, method="blora")
    assert torch.allclose(ours, by_hand("sdxl", methods.blora, pair), **CLOSE)
    assert not torch.allclose(ours, image(pipe, steps=STEPS), atol=0.02)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_blora_is_refused_elsewhere(family: str, make: Callable, files: Files) -> None:
    pipe, pair = make(family), files(family)
    with pytest.raises(PairError, match="content: 'subject' has no layer in up_blocks.0.attentions.0, .* it is for SDXL"):
        drawn(pipe, pair, method="blora")


@pytest.mark.parametrize("method", ["est", "np", "average", "blora"])
def test_both_engines_draw_the_same(method: str, make: Callable, files: Files) -> None:
    pipe, pair = make("sdxl"), files("sdxl")
    merge, bypass = (drawn(pipe, pair, method=method, engine=engine) for engine in ("merge", "bypass"))
    assert torch.allclose(merge, bypass, **CLOSE)


def test_ties_is_for_merging(make: Callable, files: Files) -> None:
    pipe, pair = make("sdxl"), files("sdxl")
    with pytest.raises(HostError, match="method: this method writes the weights and cannot .* but bypass is chosen"):
        drawn(pipe, pair, method="ties", engine="bypass")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["klora", "est", "average"])
def test_the_strength_of_a_file_is_not_in_the_choice(method: str, family: str, make: Callable, tmp_path: Path) -> None:
    """The style ten times as strong in the file, and as much weaker by its weight, is the same image."""
    pipe = make(family)
    content, style = layers_of(pipe, 1), layers_of(pipe, 2, 3)
    paths = [tmp_path / f"{name}.safetensors" for name in ("subject", "painter", "loud")]
    for path, layers in zip(paths, (content, style, scaled(style, 10.0))):
        write_dialect(layers, dialect_of(pipe), path)
    usual = drawn(pipe, (paths[0], paths[1]), method=method)
    loud = drawn(pipe, (paths[0], paths[2]), method=method, style_weight=WEIGHTS[1] / 10)
    assert torch.allclose(usual, loud, **CLOSE)
    assert not torch.allclose(usual, image(pipe, steps=STEPS), atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_np_without_mu_is_direct_and_average_of_one_step_is_klora(family: str, make: Callable, files: Files) -> None:
    pipe, pair = make(family), files(family)
    assert torch.allclose(drawn(pipe, pair, method="np", mu=0), drawn(pipe, pair, method="direct"), **CLOSE)
    for beta in (0.5, 0.9):
        with klora(pipe, *pair, method="average", beta=beta, library=LIBRARY, **GIVEN):
            once = image(pipe, steps=1)
        with klora(pipe, *pair, beta=beta, library=LIBRARY, **GIVEN):
            assert torch.equal(once, image(pipe, steps=1))


def test_balance_is_a_factor_and_none_of_it_is_nothing(make: Callable, files: Files) -> None:
    pipe, pair = make("sd15"), files("sd15")
    usual = drawn(pipe, pair)
    assert torch.equal(drawn(pipe, pair, balance=0), usual)
    assert torch.equal(drawn(pipe, pair, balance=1), drawn(pipe, pair, alpha=3.0, beta=1.0))
    assert not torch.allclose(drawn(pipe, pair, balance=1), usual, atol=0.02)
