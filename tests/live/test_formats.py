"""On a real Forge: Flux, and weights that are kept in 8 or 4 bits. The lists of the other files are for plain weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from .checks import FAR, assert_like_reference, same
from .host import Host, difference, encode
from .jobs import HIRES, PLAIN, Model, klora, plain, tag
from .kinds import FLUX_JOB, Forge
from .storage import ONLINE
from .test_safety import assert_fails, assert_stops

pytestmark = pytest.mark.hosts("forge")


@dataclass(frozen=True)
class Format:
    """stored: "Diffusion in Low Bits"; job: what its requests need beside the tests' own."""

    model: Model
    checkpoint: str
    stored: str = "Automatic"
    job: dict = field(default_factory=dict)

    @property
    def packed(self) -> bool:
        return self.stored != "Automatic" or self.checkpoint.endswith(".gguf")

    def use(self, host: Host, more: str = "") -> None:
        host.store(self.checkpoint, self.stored + more)  # type: ignore[attr-defined]


WARM = 20  # jobs until a fresh process has grown to its size: every kind of job has come a few times
LATE = {"alpha": 1, "beta": 0.25}  # the small Flux has few layers: enough of them switch late, too
FORMATS = {
    "sd15-e4m3": Format(Forge.sd15, Forge.sd15.checkpoint, "float8-e4m3fn"),
    "sd15-e5m2": Format(Forge.sd15, Forge.sd15.checkpoint, "float8-e5m2"),
    "sdxl-e4m3": Format(Forge.sdxl, Forge.sdxl.checkpoint, "float8-e4m3fn"),
    "flux": Format(Forge.flux, Forge.flux.checkpoint, job=FLUX_JOB),
    "flux-e4m3": Format(Forge.flux, Forge.flux.checkpoint, "float8-e4m3fn", FLUX_JOB),
    "flux-q8": Format(Forge.flux, "tiny-flux-q8_0.gguf", job=FLUX_JOB),
    "flux-q4": Format(Forge.flux, "tiny-flux-q4_0.gguf", job=FLUX_JOB),
}


@pytest.fixture(scope="session", params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    """Session-wide, so that pytest groups the tests by format."""
    return request.param


@pytest.fixture
def form(host: Host, name: str) -> Format:
    FORMATS[name].use(host)
    return FORMATS[name]


def test_extremes(host: Host, form: Format):
    """Merging a tag's LoRA into a packed weight packs the sum anew, which we never do: the host does neither online."""
    pair = form.model.full
    content = host.image(klora(pair, {"alpha": 0, "beta": 1e-6}, **form.job))
    style = host.image(klora(pair, {"alpha": 0, "beta": 1e6}, **form.job))
    direct = host.image(klora(pair, {"method": "direct"}, **form.job))
    assert min(difference(style, other) for other in (content, direct, host.known_image(plain(**form.job)))) > FAR
    form.use(host, ONLINE if form.packed else "")
    for image, weights in ((content, (1, 0)), (style, (0, 1)), (direct, (1, 1))):
        tags = tag(pair.content, 1, weights[0]) + tag(pair.style, 1, weights[1])
        assert difference(image, host.image(plain(prompt=PLAIN["prompt"] + tags, **form.job))) <= 1
        assert difference(host.image(klora(pair, {"alpha": 0, "beta": 1e6}, **form.job)), style) <= 1


@pytest.mark.parametrize("settings", [{}, {"scale": "s*"}, {"engine": "bypass"}], ids=str)
def test_reference(host: Host, form: Format, settings: dict):
    assert_like_reference(host, form.model.uneven, settings, **form.job)


def test_batches(host: Host, form: Format):
    pair = form.model.uneven
    got = assert_like_reference(host, pair, batch_size=2, n_iter=2, passes=2, **form.job)
    for i, image in enumerate(got.images):
        assert difference(image, host.image(klora(pair, seed=PLAIN["seed"] + i, **form.job))) <= 1
    assert difference(got.images[0], got.images[1]) > FAR


def test_hires_fix(host: Host, form: Format):
    fields = HIRES | {"denoising_strength": 0.8}
    assert_like_reference(host, form.model.uneven, LATE, passes=2, steps=4, **fields, **form.job)


def test_img2img(host: Host, form: Format):
    start = encode(host.known_image(plain(seed=5, **form.job)))
    assert_like_reference(host, form.model.uneven, LATE, init_images=[start], denoising_strength=0.75, steps=8, **form.job)


def assert_leaves_nothing(host: Host, form: Format, act) -> None:
    before, weights = host.image(plain(**form.job)), host.weights()
    act(klora(form.model.uneven, **form.job))
    assert same(host.image(plain(**form.job)), before)
    assert host.weights() == weights
    assert host.state()["hooks"] == []


def test_finished_leaves_nothing(host: Host, form: Format):
    def finish(job: dict) -> None:
        assert difference(host.image(job), host.known_image(plain(**form.job))) > FAR

    assert_leaves_nothing(host, form, finish)


def test_failed_leaves_nothing(host: Host, form: Format):
    assert_leaves_nothing(host, form, lambda job: assert_fails(host, 3, job))


@pytest.mark.parametrize("order", ["interrupt", "skip"])
def test_stopped_leaves_nothing(host: Host, form: Format, order: str):
    assert_leaves_nothing(host, form, lambda job: assert_stops(host, order, job))


def test_memory_stays_level(host: Host, form: Format):
    pairs = (form.model.uneven, form.model.full, form.model.attention)
    levels = []
    for i in range(WARM + 30):
        settings = {"alpha": 1 + i / 30, "scale": ("s", "s*")[i // 2 % 2]}
        host.image(klora(pairs[i % 3], settings, steps=3, **(HIRES if i % 4 == 1 else {}), **form.job))
        levels.append(host.memory())
    begun = levels[WARM:]
    assert min(begun[-5:]) <= 1.05 * max(begun[:10]), " ".join(str(x >> 20) for x in levels)


def test_merge_into_a_packed_weight_is_refused(host: Host, form: Format):
    if not form.packed:
        pytest.skip("its weights are plain")
    answer = host.ask("/sdapi/v1/txt2img", klora(form.model.full, {"engine": "merge"}, **form.job))
    assert answer.status == 422
    assert "engine" in answer.text and "bypass" in answer.text
