"""A baked file, loaded by the WebUI's own tag, draws what the method draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from klora_lib.cli.main import main
from klora_lib.settings import FIELDS

from .checks import FAR
from .host import Host, difference
from .jobs import PLAIN, Model, Pair, klora, plain, tag

TWO_KINDS = pytest.mark.hosts("a1111", "forge")
STATIC = ("direct", "np", "average", "content")
N = 3


@pytest.fixture
def folder(host: Host) -> Iterator[Path]:
    """The WebUI's folder of LoRAs, in which what a test bakes does not stay."""
    before = set(host.lora.iterdir())
    yield host.lora
    for path in set(host.lora.iterdir()) - before:
        path.unlink()
    host.refresh_loras()


def bake(host: Host, pair: Pair, name: str, *options: str) -> None:
    files = (str(host.lora / f"{each}.safetensors") for each in (pair.content, pair.style))
    assert main(["bake", *files, "--out", str(host.lora / f"{name}.safetensors"), "--steps", "6", *options]) == 0
    host.refresh_loras()


def assert_draws(host: Host, pair: Pair, name: str, settings: dict) -> None:
    got = host.image(plain(prompt=PLAIN["prompt"] + tag(name)))
    wanted = host.image(klora(pair, settings))
    assert difference(got, host.known_image(plain())) > FAR
    assert difference(got, wanted) <= 1


@TWO_KINDS
@pytest.mark.parametrize("method", STATIC)
def test_a_static_method(host: Host, model: Model, folder: Path, method: str):
    bake(host, model.full, f"baked_{method}", "--method", method)
    assert_draws(host, model.full, f"baked_{method}", {"method": method})


@TWO_KINDS
def test_weights_and_text_encoders(host: Host, model: Model, folder: Path):
    weights = {"content_weight": 0.7, "style_weight": 1.2, "content_te_weight": 0.4, "style_te_weight": -0.5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in weights.items()]
    bake(host, model.full, "baked_weights", "--method", "direct", *options)
    assert_draws(host, model.full, "baked_weights", {"method": "direct", **weights})


@TWO_KINDS
def test_blora(host: Host, folder: Path):
    model = host.sdxl
    host.use(model.checkpoint)
    bake(host, model.full, "baked_blora", "--method", "blora")
    assert_draws(host, model.full, "baked_blora", {"method": "blora"})


@TWO_KINDS
def test_ties_by_singular_vectors(host: Host, sd15: Model, folder: Path):
    bake(host, sd15.full, "baked_ties", "--method", "ties", "--rank", "320")
    assert_draws(host, sd15.full, "baked_ties", {"method": "ties"})


@TWO_KINDS
@pytest.mark.parametrize("number", range(1, N + 1))
def test_a_segment_is_klora_held_in_its_middle(host: Host, sd15: Model, folder: Path, number: int):
    """With α = 0 and β = S(t), K-LoRA makes the choice of the moment t at every step."""
    bake(host, sd15.full, "baked", "--segments", str(N))
    held = {"alpha": 0, "beta": 1.5 * (number - 0.5) / N + 0.5}
    if number > 1:  # the text encoders' part is in the first file alone
        held |= {"content_te_weight": 0, "style_te_weight": 0}
    assert_draws(host, sd15.full, f"baked-{number}", held)


@pytest.mark.hosts("forge")
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_flux(host: Host, folder: Path, form: str):
    from .kinds import FLUX_JOB

    (model,) = host.further
    host.use(model.checkpoint)
    bake(host, model.full, f"baked_{form}", "--method", "direct", "--format", form)
    got = host.image(plain(**FLUX_JOB) | {"prompt": PLAIN["prompt"] + tag(f"baked_{form}")})
    wanted = host.image(klora(model.full, {"method": "direct"}, **FLUX_JOB))
    assert difference(got, host.image(plain(**FLUX_JOB))) > FAR
    assert difference(got, wanted) <= 1


# --- the panel's button ---


def press_save(host: Host, pair: Pair, name: str, segments: int = 1, **settings: object) -> str:
    """What the panel says after *Save as LoRA*, pressed as the page presses it."""
    page = host.must("/config")
    names = {each["id"]: each["props"].get("elem_id") for each in page["components"]}
    pressed = {
        place: each.get("id", place)
        for place, each in enumerate(page["dependencies"])
        if any(names.get(t if isinstance(t, int) else t[0]) == "script_txt2img_klora_save_button" for t in each["targets"])
    }
    (number,) = pressed.values()
    values = {"content": pair.content, "style": pair.style, "beta": 0.5, **settings}
    args = [values.get(field.name, "" if field.default is None else field.default) for field in FIELDS]
    body = {"fn_index": number, "data": [*args, name, segments, 6, False], "session_hash": "live"}
    return host.must("/run/predict", body)["data"][0]


@TWO_KINDS
def test_the_panels_button(host: Host, sd15: Model, folder: Path):
    told = press_save(host, sd15.full, "my own", method="np", content_weight=0.8)
    assert told.startswith("Saved **my own** (") and "<lora:my own:1>" in told
    assert_draws(host, sd15.full, "my own", {"method": "np", "content_weight": 0.8})
    assert "'my own.safetensors' exists already" in press_save(host, sd15.full, "my own", method="np")
    assert "one file cannot" in press_save(host, sd15.full, "switching")
    assert "has '/' in it" in press_save(host, sd15.full, "../outside", method="np")
    assert not (host.lora.parent / "outside.safetensors").exists()
    assert "**parts-3** (" in press_save(host, sd15.full, "parts", 3)
