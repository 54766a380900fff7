"""On a real Forge: the extremes are the single LoRAs, both engines agree, and a plain image afterwards is as before."""

from __future__ import annotations

import pytest

from ..live.checks import FAR, same
from ..live.host import difference, encode
from ..live.jobs import PLAIN, Pair, klora, plain, tag
from .conftest import Forge

SD15 = "tiny-sd15.safetensors", Pair("subject", "style"), {}
SDXL = "tiny-sdxl.safetensors", Pair("xl_subject", "xl_style"), {}
FLUX_JOB = {
    "sampler_name": "Euler", "cfg_scale": 1, "distilled_cfg_scale": 3.5, "scheduler": "Simple", "negative_prompt": "",
}  # fmt: skip
FLUX = "tiny-flux.safetensors", Pair("flux_subject", "flux_style"), FLUX_JOB
GGUF = "tiny-flux-q8_0.gguf", Pair("flux_subject", "flux_style"), FLUX_JOB
HIRES = {
    "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 4, "denoising_strength": 0.5,
    "hr_additional_modules": ["Use same choices"], "hr_cfg": 5,
}  # fmt: skip
IDS = ["sd15", "sdxl", "flux", "q8"]
MODELS = pytest.mark.parametrize(("checkpoint", "pair", "fields"), [SD15, SDXL, FLUX, GGUF], ids=IDS)


def use(forge: Forge, checkpoint: str) -> None:
    (forge.use_flux if "flux" in checkpoint else forge.use)(checkpoint)


def tagged(pair: Pair, content: tuple[float, float], style: tuple[float, float], **fields: object) -> dict:
    return plain(prompt=PLAIN["prompt"] + tag(pair.content, *content) + tag(pair.style, *style), **fields)


@MODELS
def test_extremes_and_after(forge: Forge, checkpoint: str, pair: Pair, fields: dict) -> None:
    """The style LoRAs have layers of their own, which always carry them: style only is just that LoRA."""
    use(forge, checkpoint)
    before = forge.image(plain(**fields))
    style = forge.image(klora(pair, {"alpha": 0, "beta": 1e6}, **fields))
    direct = forge.image(klora(pair, {"method": "direct"}, **fields))
    content = forge.image(klora(pair, {"method": "content"}, **fields))
    assert same(forge.image(plain(**fields)), before)
    assert difference(style, forge.image(tagged(pair, (1, 0), (1, 1), **fields))) <= 1
    assert difference(direct, forge.image(tagged(pair, (1, 1), (1, 1), **fields))) <= 1
    assert difference(content, forge.image(tagged(pair, (1, 1), (1, 0), **fields))) <= 1
    assert min(difference(style, content), difference(style, direct), difference(content, before)) > FAR
    assert same(forge.image(plain(**fields)), before)


@MODELS
def test_engines_agree_and_differ_from_both_extremes(forge: Forge, checkpoint: str, pair: Pair, fields: dict) -> None:
    use(forge, checkpoint)
    chosen = forge.image(klora(pair, **fields))
    assert difference(chosen, forge.image(klora(pair, {"engine": "bypass"}, **fields))) <= 2
    assert difference(chosen, forge.image(klora(pair, {"alpha": 0, "beta": 1e6}, **fields))) > FAR
    assert difference(chosen, forge.image(klora(pair, {"scale": "s*"}, **fields))) > 1


@pytest.mark.parametrize("sampler", ["Heun", "DPM++ 2M", "DDIM", "UniPC"])
def test_samplers(forge: Forge, sampler: str) -> None:
    checkpoint, pair, _ = SD15
    use(forge, checkpoint)
    fields = {"sampler_name": sampler}
    style = forge.image(klora(pair, {"alpha": 0, "beta": 1e6}, **fields))
    assert difference(style, forge.image(tagged(pair, (1, 0), (1, 1), **fields))) <= 1


def test_hires_and_img2img(forge: Forge) -> None:
    checkpoint, pair, _ = SD15
    use(forge, checkpoint)
    before = forge.image(plain())
    still = {"alpha": 0, "beta": 1e6}
    tags = tag(pair.content, 1, 0) + tag(pair.style, 1, 1)
    assert (
        difference(forge.image(klora(pair, still, **HIRES)), forge.image(plain(prompt=PLAIN["prompt"] + tags, **HIRES))) <= 1
    )
    image = {"init_images": [encode(before)], "denoising_strength": 0.6}
    # Forge draws the encoder's noise from torch's own generator: two equal img2img jobs differ a little of themselves
    own = difference(forge.image(plain(**image)), forge.image(plain(**image)))
    got = difference(forge.image(klora(pair, still, **image)), forge.image(plain(prompt=PLAIN["prompt"] + tags, **image)))
    assert got <= 2 * own + 1
    assert same(forge.image(plain()), before)


def test_a_tag_gives_the_weight_and_batches_are_single_runs(forge: Forge) -> None:
    checkpoint, pair, _ = SD15
    use(forge, checkpoint)
    job = klora(pair, {"method": "style"})
    job["prompt"] += tag(pair.style, 1, 0.5)
    written = klora(pair, {"method": "style", "style_weight": 0.5, "style_te_weight": 1})
    assert difference(forge.image(job), forge.image(written)) <= 1
    batch = forge.run(klora(pair, n_iter=3)).images[-3:]
    singles = [forge.image(klora(pair, seed=PLAIN["seed"] + n)) for n in range(3)]
    assert all(difference(a, b) <= 1 for a, b in zip(batch, singles, strict=True))


@pytest.mark.parametrize(
    ("settings", "fact"),
    [({"alpha": "abc"}, "alpha"), ({"content": "nope"}, "no LoRA named 'nope'"), ({"style": "xl_style"}, "different models"),
     ({"nonsense": 1}, "nonsense"), ({"content": "../style"}, "no LoRA named")],
)  # fmt: skip
def test_refusals(forge: Forge, settings: dict, fact: str) -> None:
    checkpoint, pair, _ = SD15
    use(forge, checkpoint)
    before = forge.image(plain())
    answer = forge.ask("/sdapi/v1/txt2img", klora(pair, settings))
    assert answer.status == 422 and fact in answer.text
    assert same(forge.image(plain()), before)
