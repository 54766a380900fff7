"""Theorems of jobs by tag: it is the panel with the same values, a batch and a pass has its own, and no image is plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastapi import HTTPException

from ..fakes.host import FakeHost
from ..fakes.processing import Processing, process_images
from .acts import ended
from .jobs import close, expected, job, plain, plan_of, untouched, watch, weights

FULL = {"content": "subject_full", "style": "style_full"}
PAIR = "<klora:subject_full:style_full>"
HIRES: dict[str, Any] = {"enable_hr": True, "denoising_strength": 0.5, "hr_second_pass_steps": 4}


def drawn(p: Processing) -> torch.Tensor:
    return process_images(p).images[0]


def refused(host: FakeHost, prompt: Any, **fields: Any) -> str:
    before = weights(host)
    with pytest.raises(HTTPException) as refusal:
        process_images(plain(host, prompt=prompt, **fields))
    assert refusal.value.status_code == 422 and host.samplers == [] and untouched(host, before) and host.swallowed == []
    return str(refusal.value.detail)


# --- a tag is a panel ---


@pytest.mark.parametrize(
    ("tag", "settings"),
    [
        (PAIR, {}),
        ("<klora:subject_full:style_full:0.5:2>", {"content_weight": 0.5, "style_weight": 2}),
        ("<klora:subject_full:style_full:style_te_weight=0:method=direct:engine=bypass>",
         {"style_te_weight": 0, "method": "direct", "engine": "bypass"}),
    ],
)  # fmt: skip
def test_a_tag_draws_what_the_panel_draws(host: FakeHost, tag: str, settings: dict) -> None:
    before = weights(host)
    p = plain(host, prompt=f"a cat{tag}")
    assert torch.equal(drawn(p), drawn(job(host, {**FULL, **settings})))
    assert p.prompts == ["a cat"], "the tag is not encoded"
    assert untouched(host, before) and host.swallowed == [] and "init" not in vars(p)


def test_the_infotext_has_the_prompt_as_written_and_what_the_tag_says(host: FakeHost) -> None:
    text = process_images(plain(host, prompt=f"a cat{PAIR}")).infotexts[0]
    assert text.startswith(f"a cat{PAIR}\n")
    assert "K-LoRA content: subject_full, K-LoRA style: style_full" in text and "K-LoRA tag: used" in text


def test_the_tag_wins_over_the_panel_and_the_image_says_so(host: FakeHost) -> None:
    p = job(host, {"alpha": 4, "style_weight": 3}, prompt=f"a cat{PAIR}")
    processed = process_images(p)
    assert torch.equal(processed.images[0], drawn(job(host, FULL)))
    assert "K-LoRA tag: used instead of the panel" in processed.infotexts[0]
    assert "K-LoRA alpha" not in processed.infotexts[0]
    assert "K-LoRA: the tag in the prompt was used instead of the panel" in p.comments


def test_a_tag_of_the_pair_gives_its_weight_to_the_tags_pair_too(host: FakeHost) -> None:
    asked = job(host, {**FULL, "style_weight": 0.7, "style_te_weight": 0.3})
    assert torch.equal(drawn(plain(host, prompt=f"a cat{PAIR}<lora:style_full:0.3:0.7>")), drawn(asked))


def test_the_map_is_appended_if_the_tag_asks_for_it(host: FakeHost) -> None:
    tag = "<klora:subject:style:show_map=true>"
    assert len(process_images(plain(host, prompt=f"a cat{tag}")).images) == 2


# --- where prompts come from ---


def test_a_tag_that_another_script_writes_is_read(host: FakeHost) -> None:
    """Dynamic Prompts replaces its templates in the hook that our script may have before it."""
    def write(p: Processing) -> None:
        p.all_prompts = [f"a cat{PAIR}" for _ in p.all_prompts]

    host.on_process.append(write)
    assert torch.equal(drawn(plain(host, prompt="a {<klora:subject:style>|<klora:style:subject>}")), drawn(job(host, FULL)))


def test_every_batch_has_the_tag_of_its_own_prompt(host: FakeHost) -> None:
    prompts = [f"a cat{PAIR}", "a cat", "a cat<klora:style:subject:method=direct>", f"a cat{PAIR}"]
    p = plain(host, prompt=prompts, n_iter=4)
    processed = process_images(p)
    for n, (image, prompt) in enumerate(zip(processed.images, prompts)):
        assert torch.equal(image, drawn(plain(host, prompt=prompt, seed=p.seed + n))), n
    assert ["K-LoRA content" in text for text in processed.infotexts] == [True, False, True, True]
    assert "K-LoRA content: style" in processed.infotexts[2] and len(p.klora_job.passes) == 3


def test_img2img_has_one_sampler_for_all_batches_of_different_tags(host: FakeHost) -> None:
    prompts, source = ["a cat", f"a cat{PAIR}", "a cat"], torch.ones(1, 4, 4, 4)
    p = plain(host, prompt=prompts, n_iter=3, source=source)
    for n, image in enumerate(process_images(p).images):
        assert torch.equal(image, drawn(plain(host, prompt=prompts[n], seed=p.seed + n, source=source))), n


def test_the_prompts_of_one_batch_must_agree(host: FakeHost) -> None:
    said = refused(host, [f"a cat{PAIR}", "a dog"], batch_size=2)
    assert said == (
        f"K-LoRA: prompt: the prompts of one batch have different K-LoRA tags, {PAIR} and none; draw them with batch size 1"
    )
    assert len(process_images(plain(host, prompt=[f"a cat{PAIR}", f"a dog{PAIR}"], batch_size=2)).images) == 1


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("<klora:subject:nobody>", "style: there is no LoRA named 'nobody' among the 6 listed"),
        ("<klora:subject:subject>", "style: must be another LoRA than content, both are 'subject'"),
        ("<klora:subject:style:much>",
         "prompt: in the tag <klora:subject:style:much>, content_weight: must be a number from -100 to 100, not 'much'"),
        ("<klora:subject:style:balanse=1>",
         "prompt: in the tag <klora:subject:style:balanse=1>, 'balanse': is not a K-LoRA setting"),
        ("<klora:subject:style:scale=s*:alpha=0>",
         "prompt: in the tag <klora:subject:style:scale=s*:alpha=0>, alpha: must be above 0 with scale s*"),
        ("<klora:subject>", "prompt: the tag <klora:subject> names no style LoRA"),
        ("<klora:subject:other_family>", "content and style: 'subject' and 'other_family' are made for different models"),
    ],
)  # fmt: skip
def test_a_wrong_tag_is_refused_before_sampling(host: FakeHost, tag: str, sentence: str) -> None:
    assert refused(host, f"a cat{tag}").startswith(f"K-LoRA: {sentence}")


def test_a_wrong_tag_of_a_later_batch_is_refused_before_the_first(host: FakeHost) -> None:
    assert "'nobody'" in refused(host, [f"a cat{PAIR}", "a cat<klora:subject:nobody>"], n_iter=2)


def test_a_tag_cannot_act_where_extra_networks_are_disabled(host: FakeHost) -> None:
    said = refused(host, f"a cat{PAIR}", disable_extra_networks=True)
    assert said == f"K-LoRA: prompt: the tag {PAIR} cannot act: extra networks are disabled in this job"


@pytest.mark.parametrize("panel", [{}, {"enabled": True, **FULL}], ids=["off", "on"])
@pytest.mark.parametrize("prompt", ["a cat", f"a cat{PAIR}"])
def test_a_tag_that_comes_after_the_job_began_is_refused(host: FakeHost, panel: dict, prompt: str) -> None:
    before, tag = weights(host), "<klora:style:subject>"
    host.on_batch.append(lambda p: p.prompts.__setitem__(0, f"a cat{tag}"))
    p = plain(host, prompt=prompt)
    p.script_args = (panel,)
    assert ended(p) == f"K-LoRA: prompt: the tag {tag} came into the prompt after the job had begun, where it cannot act"
    host.on_batch.clear()
    process_images(plain(host))
    assert untouched(host, before)


def test_a_job_without_a_tag_is_left_alone(host: FakeHost) -> None:
    p = plain(host, prompt="a cat <lora:subject:0.5>")
    process_images(p)
    assert "init" not in vars(p) and not hasattr(p, "klora_job")


def test_what_is_drawn_next_with_the_same_job_tells_nothing_of_it(host: FakeHost) -> None:
    """img2img's batch draws one image after another with one p; what each is drawn with may come from its file."""
    p = plain(host, prompt="a cat <klora:subject:style>")
    assert "K-LoRA tag: used" in process_images(p).infotexts[0]
    p.prompt = "a cat"
    drawn = process_images(p)
    assert "K-LoRA" not in drawn.infotexts[0]
    assert torch.equal(drawn.images[0], process_images(plain(host, prompt="a cat")).images[0])


@pytest.mark.parametrize("enabled", [False, "false", 0, None])
def test_a_panel_that_is_off_is_not_said_to_be_on(host: FakeHost, enabled: object) -> None:
    given = {} if enabled is None else {"enabled": enabled}
    drawn = process_images(Processing(host, script_args=(given,), prompt="a cat <klora:subject:style>"))
    assert "K-LoRA tag: used" in drawn.infotexts[0] and "instead of the panel" not in drawn.infotexts[0]


# --- the hires pass ---


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_off_is_a_hires_pass_with_nothing_of_the_pair(host: FakeHost, engine: str) -> None:
    """Not in the text encoders, and not by the pair's own tags either."""
    before, seen = weights(host), watch(host)
    p = job(host, {**FULL, "hires": "off", "engine": engine}, prompt="a cat<lora:style_full:0.5>", **HIRES)
    process_images(p)
    assert len(seen) == 10 and all(close(got, before) for got in seen[6:])
    assert untouched(host, before) and host.swallowed == [] and len(p.klora_job.passes) == 1
    q = plain(host)
    process_images(q)
    assert torch.equal(p.c, q.c), "the prompt is encoded as without the pair"
    assert "K-LoRA hires: off" in ", ".join(f"{k}: {v}" for k, v in p.extra_generation_params.items())


def test_own_is_the_pair_with_another_balance(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    process_images(job(host, {"balance": -1, "hires": "own", "hires_balance": 1}, **HIRES))
    first, hires = (plan_of(host, job(host, {"balance": b}), n) for b, n in ((-1, 6), (1, 8)))
    assert all(close(seen[t], expected(host, before, first, t / 6)) for t in range(6))
    assert all(close(seen[6 + t], expected(host, before, hires, 0.5 + 0.5 * t / 4)) for t in range(4))
    assert untouched(host, before)


def test_the_default_is_the_same_as_ever(host: FakeHost) -> None:
    same = drawn(job(host, {"hires_balance": 2}, **HIRES))
    assert torch.equal(same, drawn(job(host, **HIRES)))
    assert torch.equal(same, drawn(job(host, {"hires": "own", "hires_balance": 0}, **HIRES)))


def test_the_hires_prompt_may_have_a_tag_of_its_own(host: FakeHost) -> None:
    """Another pair, after which the first one is back in the next batch."""
    before, seen = weights(host), watch(host)
    p = plain(host, prompt="a cat<klora:subject:style>", hr_prompt="a cat<klora:style_full:subject_full>", n_iter=2, **HIRES)
    processed = process_images(p)
    other = {"content": "style_full", "style": "subject_full"}
    first, hires = plan_of(host, job(host), 6), plan_of(host, job(host, other), 8)
    for batch in range(2):
        at = 10 * batch
        assert all(close(seen[at + t], expected(host, before, first, t / 6)) for t in range(6))
        assert all(close(seen[at + 6 + t], expected(host, before, hires, 0.5 + 0.5 * t / 4)) for t in range(4))
    assert untouched(host, before)
    assert "K-LoRA hires tag: used" in processed.infotexts[0]


def test_a_hires_prompt_alone_may_have_one(host: FakeHost) -> None:
    before, seen = weights(host), watch(host)
    p = plain(host, hr_prompt="a cat<klora:subject:style>", **HIRES)
    processed = process_images(p)
    assert all(close(got, before) for got in seen[:6])
    hires = plan_of(host, job(host), 8)
    assert all(close(seen[6 + t], expected(host, before, hires, 0.5 + 0.5 * t / 4)) for t in range(4))
    assert "K-LoRA hires tag: used" in processed.infotexts[0] and "K-LoRA content" not in processed.infotexts[0]


def test_a_hires_prompt_without_a_tag_keeps_the_pair(host: FakeHost) -> None:
    image = drawn(plain(host, prompt=f"a cat{PAIR}", hr_prompt="a dog", **HIRES))
    assert torch.equal(image, drawn(job(host, FULL, hr_prompt="a dog", **HIRES)))


def test_what_belongs_into_the_prompts_tag_is_refused_in_the_hires_prompts(host: FakeHost) -> None:
    said = refused(host, "a cat", hr_prompt="a cat<klora:subject:style:hires=off>", **HIRES)
    assert said.endswith("of the hires prompt has hires, which belongs into the prompt's tag")


def test_the_pairs_own_tags_keep_their_weight_where_the_hires_prompt_has_none(host: FakeHost) -> None:
    asked = {**FULL, "content_weight": 0.4, "style_weight": 0.7, "style_te_weight": 0.3}
    tags = "<lora:subject_full:0.4><lora:style_full:0.3:0.7>"
    wanted = drawn(job(host, asked, hr_prompt="a dog", **HIRES))
    assert torch.equal(drawn(job(host, FULL, prompt=f"a cat{tags}", hr_prompt="a dog", **HIRES)), wanted)
    one = drawn(job(host, FULL, prompt=f"a cat{tags}", hr_prompt="a dog<lora:style_full:0.3:0.7>", **HIRES))
    assert torch.equal(one, wanted)
