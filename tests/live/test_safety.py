"""Off is off, and after every job, however it ended, the WebUI is what it was, bit for bit."""

from __future__ import annotations

import pytest

from .checks import FAR, same
from .host import Host, difference, encode
from .jobs import HIRES, PLAIN, Model, klora, plain, tag
from .witness import Witness


def plain_jobs(model: Model) -> dict[str, dict]:
    tagged = {"prompt": PLAIN["prompt"] + tag(model.full.content) + tag(model.full.style, 0.5, 0.5)}
    jobs = {"plain": plain(), "tags": plain(**tagged)}
    if model.name == "sd15":
        jobs |= {"heun": plain(sampler_name="Heun"), "hires": plain(**HIRES, **tagged)}
    return jobs


@pytest.fixture(scope="session")
def bare_images(bare_host: Host) -> dict[tuple[str, str], object]:
    """What the WebUI makes without our extension."""
    out = {}
    for model in bare_host.models.values():
        bare_host.use(model.checkpoint)
        out |= {(model.name, name): bare_host.image(job) for name, job in plain_jobs(model).items()}
    bare_host.stop()
    return out


def test_off_is_the_webui_without_the_extension(host: Host, model: Model, bare_images):
    for name, job in plain_jobs(model).items():
        off = klora(model.full, {"enabled": False}) | job
        assert same(host.image(off), bare_images[model.name, name])
    host.image(klora(model.uneven))
    for name, job in plain_jobs(model).items():
        assert same(host.image(job), bare_images[model.name, name])


ENGINES = pytest.mark.parametrize("engine", ["merge", "bypass"])


def test_finished(host: Host, witness: Witness):
    assert difference(host.image(klora(witness.model.uneven)), witness.images[0]) > FAR
    witness.assert_unchanged()


def test_finished_bypass(host: Host, sd15_witness: Witness):
    assert difference(host.image(klora(host.sd15.uneven, {"engine": "bypass"})), sd15_witness.images[0]) > FAR
    sd15_witness.assert_unchanged()


@ENGINES
@pytest.mark.parametrize("order", ["interrupt", "skip"])
def test_stopped_at_call_3(host: Host, sd15_witness: Witness, engine: str, order: str):
    assert_stops(host, order, klora(host.sd15.uneven, {"engine": engine}))
    sd15_witness.assert_unchanged()


def assert_stops(host: Host, order: str, job: dict) -> None:
    whole = host.image(job)
    assert host.last_job()["calls"] == job["steps"]
    host.arm(**{order: 3})
    assert not same(host.image(job), whole)
    assert host.last_job()["calls"] == 3


def assert_fails(host: Host, call: int, job: dict) -> None:
    host.arm(fail=call)
    answer = host.ask("/sdapi/v1/txt2img", job)
    assert answer.status == 500
    assert "told to fail" in answer.text


def test_failed_inside_the_unet(host: Host, witness: Witness):
    assert_fails(host, 3, klora(witness.model.uneven))
    witness.assert_unchanged()


def test_failed_inside_the_unet_bypass(host: Host, sd15_witness: Witness):
    assert_fails(host, 3, klora(host.sd15.uneven, {"engine": "bypass"}))
    sd15_witness.assert_unchanged()


def test_failed_at_the_first_call(host: Host, sd15_witness: Witness):
    assert_fails(host, 1, klora(host.sd15.uneven))
    sd15_witness.assert_unchanged()


def test_failed_in_the_second_of_three_images(host: Host, sd15_witness: Witness):
    assert_fails(host, 8, klora(host.sd15.uneven, n_iter=3))
    sd15_witness.assert_unchanged()


def test_failed_in_the_hires_pass(host: Host, sd15_witness: Witness):
    assert_fails(host, 8, klora(host.sd15.uneven, **HIRES))
    sd15_witness.assert_unchanged()


@ENGINES
def test_failed_then_another_klora_job(host: Host, sd15_witness: Witness, engine: str):
    """The next job is the first that can undo what a crash left, also where it is no plain one."""
    whole = host.image(klora(host.sd15.uneven, {"engine": engine}))
    assert_fails(host, 3, klora(host.sd15.uneven, {"engine": engine}))
    assert same(host.image(klora(host.sd15.uneven, {"engine": engine})), whole)
    sd15_witness.assert_unchanged()


@ENGINES
@pytest.mark.hosts("forge", "reforge", "classic", "neo")
def test_weights_rewritten_within_a_pass(host: Host, sd15_witness: Witness, engine: str):
    """Fooocus inpaint loads another patcher of the same model and then the pass's own again; a full preview may, too."""
    job = klora(host.sd15.uneven, {"engine": engine}, prompt=PLAIN["prompt"] + tag(host.sd15.attention.content, 0.5, 0.5))
    whole = host.image(job)
    host.arm(rewrite=3)
    assert same(host.image(job), whole)
    assert host.last_job()["rewritten"] > 10
    sd15_witness.assert_unchanged()


@pytest.mark.parametrize(("other", "fail"), [("sd15", 0), ("sd15", 3), ("sdxl", 3)])
def test_another_checkpoint_next(host: Host, sd15_witness: Witness, other: str, fail: int):
    other = host.sd15_other if other == "sd15" else host.models[other].checkpoint
    host.use(other)
    elsewhere = host.known_image(plain())
    host.use(host.sd15.checkpoint)
    if fail:
        assert_fails(host, fail, klora(host.sd15.uneven))
    else:
        host.image(klora(host.sd15.uneven))
    host.use(other)
    assert same(host.image(plain()), elsewhere)
    sd15_witness.assert_unchanged()


def test_hires_checkpoint_leaves_both_models(host: Host, sd15_witness: Witness):
    host.image(klora(host.sd15.uneven, **HIRES, hr_checkpoint_name=host.sd15_other))
    sd15_witness.assert_unchanged()


def test_refiner_steps_aside(host: Host, sd15_witness: Witness):
    fields = {"refiner_checkpoint": host.sd15_other, "refiner_switch_at": 0.5}
    refined = host.run(klora(host.sd15.uneven, **fields))
    said = [f"{k}: {v}" for k, v in refined.info["extra_generation_params"].items() if k.startswith("K-LoRA")]
    assert any("refiner" in x.lower() for x in said), refined.said
    assert difference(refined.image, host.image(plain(**fields))) > FAR
    sd15_witness.assert_unchanged()


@pytest.mark.hosts("a1111")
def test_lora_functional_leaves_nothing(host: Host, sd15_witness: Witness):
    host.options(lora_functional=True)
    try:
        host.image(klora(host.sd15.uneven))
        assert_fails(host, 3, klora(host.sd15.uneven))
    finally:
        host.options(lora_functional=False)
    sd15_witness.assert_unchanged()


def test_refused_job_changes_nothing(host: Host, sd15_witness: Witness):
    assert host.ask("/sdapi/v1/txt2img", klora(host.sd15.uneven, {"alpha": "abc"})).status == 422
    sd15_witness.assert_unchanged()


def test_same_job_twice_is_the_same_image(host: Host, model: Model):
    assert same(host.image(klora(model.uneven)), host.image(klora(model.uneven)))


def test_prompt_cache_does_not_carry_text_encoder_parts_over(host: Host, sd15: Model):
    """Same prompt, other text encoder weights: the host caches what it encoded."""
    images = [host.image(klora(sd15.full, {"content_te_weight": w})) for w in (0, 1, 0)]
    assert difference(images[0], images[1]) > 0
    assert same(images[0], images[2])


def test_memory_stays_level(host: Host, sd15: Model):
    start = encode(host.known_image(plain()))
    levels = []
    for i in range(30):
        pair = (sd15.uneven, sd15.full, sd15.attention)[i % 3]
        settings = {"alpha": 1 + i / 30, "engine": ("merge", "bypass")[i % 2], "scale": ("s", "s*")[i // 2 % 2]}
        fields = ({}, {"init_images": [start], "denoising_strength": 0.6}, HIRES, {"sampler_name": "Heun"})[i % 4]
        host.image(klora(pair, settings, steps=4, **fields))
        levels.append(host.memory())
    assert levels[-1] <= 1.05 * levels[4], [x >> 20 for x in levels]


def test_reload_ui(host: Host, sd15_witness: Witness):
    whole = host.image(klora(host.sd15.uneven))
    host.reload_ui()
    assert host.state()["callbacks"] == sd15_witness.state["callbacks"]
    assert same(host.image(klora(host.sd15.uneven)), whole)
    sd15_witness.assert_unchanged()


def test_reload_ui_after_a_crash(host: Host, sd15_witness: Witness):
    whole = host.image(klora(host.sd15.uneven))
    assert_fails(host, 3, klora(host.sd15.uneven))
    host.reload_ui()
    sd15_witness.assert_unchanged()
    assert same(host.image(klora(host.sd15.uneven)), whole)
