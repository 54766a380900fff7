"""On a real Forge: Flux, and weights that are packed. The lists of the other files are for plain weights."""

from __future__ import annotations

import pytest

from .checks import FAR, assert_like_reference, same
from .host import Host, difference
from .jobs import PLAIN, klora, plain, tag
from .kinds import FLUX_JOB as FLUX
from .kinds import Forge
from .test_safety import assert_fails

pytestmark = pytest.mark.hosts("forge")
PAIR = Forge.flux.full
CHECKPOINTS = ("tiny-flux.safetensors", "tiny-flux-q8_0.gguf", "tiny-flux-q4_0.gguf")
# merging a tag's LoRA into a packed weight packs the sum anew, which we never do: what is exact is the reference
PACKED_ANEW = {"tiny-flux-q8_0.gguf": 3, "tiny-flux-q4_0.gguf": 25}


@pytest.fixture(params=CHECKPOINTS)
def flux(host: Host, request: pytest.FixtureRequest) -> str:
    host.use(request.param)
    return request.param


def tagged(content: float, style: float) -> dict:
    """Both text-encoder parts, and the denoiser parts by these weights."""
    return plain(prompt=PLAIN["prompt"] + tag(PAIR.content, 1, content) + tag(PAIR.style, 1, style), **FLUX)


def test_extremes(host: Host, flux: str):
    within = PACKED_ANEW.get(flux, 1)
    content = host.image(klora(PAIR, {"alpha": 0, "beta": 1e-6}, **FLUX))
    style = host.image(klora(PAIR, {"alpha": 0, "beta": 1e6}, **FLUX))
    direct = host.image(klora(PAIR, {"method": "direct"}, **FLUX))
    assert difference(content, host.image(tagged(1, 0))) <= within
    assert difference(style, host.image(tagged(0, 1))) <= within
    assert difference(direct, host.image(tagged(1, 1))) <= within
    assert min(difference(style, content), difference(style, direct), difference(content, host.image(plain(**FLUX)))) > FAR


@pytest.mark.parametrize("settings", [{}, {"scale": "s*"}, {"engine": "bypass"}], ids=str)
def test_reference(host: Host, flux: str, settings: dict):
    assert_like_reference(host, Forge.flux.uneven, settings, **FLUX)


@pytest.mark.parametrize("call", [0, 3])
def test_finished_or_failed_leaves_nothing(host: Host, flux: str, call: int):
    before, weights = host.image(plain(**FLUX)), host.weights()
    if call:
        assert_fails(host, call, klora(Forge.flux.uneven, **FLUX))
    else:
        assert difference(host.image(klora(Forge.flux.uneven, **FLUX)), before) > FAR
    assert same(host.image(plain(**FLUX)), before)
    assert host.weights() == weights
    assert host.state()["hooks"] == []


def test_merge_into_a_packed_weight_is_refused(host: Host):
    host.use("tiny-flux-q8_0.gguf")
    answer = host.ask("/sdapi/v1/txt2img", klora(PAIR, {"engine": "merge"}, **FLUX))
    assert answer.status == 422
    assert "engine" in answer.text and "bypass" in answer.text
