"""The prompt's tag, the hires pass of its own, odd names and the infotext, on the real WebUI."""

from __future__ import annotations

import pytest

from . import files
from .checks import FAR, assert_like_reference, assert_reference_at_work, largest_difference, same
from .host import Host, Result, difference
from .jobs import HIRES, PLAIN, Model, Pair, klora, plain, reference, tag
from .test_api import INFOTEXT
from .witness import Witness

PROMPT = PLAIN["prompt"]
APART = 2  # of 255: a hires pass moves the image less than a whole job; what is equal is within 1


def klora_tag(pair: Pair, *more: str) -> str:
    return f"<klora:{':'.join([pair.content, pair.style, *more])}>"


def refused(host: Host, **fields: object) -> str:
    answer = host.ask("/sdapi/v1/txt2img", plain(**fields))
    assert answer.status == 422, answer.text[:500]
    assert host.last_job()["calls"] == 0
    return answer.body["detail"]


# --- the tag ---


def test_a_tag_is_the_panel(host: Host, witness: Witness):
    pair = witness.model.uneven
    settings = {"style_weight": 0.8, "balance": 0.5, "layers": "attention", "content_te_weight": 0.6}
    panel = host.image(klora(pair, settings))
    written = klora_tag(pair, "1", "0.8", "balance=0.5", "layers=attention", "content_te_weight=0.6")
    made = host.run(plain(prompt=PROMPT + written))
    assert same(made.image, panel) and difference(panel, host.known_image(plain())) > FAR
    assert made.infotext.startswith(PROMPT + written + "\n")
    assert "K-LoRA balance: 0.5" in made.infotext and "K-LoRA tag: used," in made.infotext + ","
    witness.assert_unchanged()


def test_the_tag_wins_over_the_panel(host: Host, sd15: Model):
    made = host.run(klora(sd15.attention, {"alpha": 4}, prompt=PROMPT + klora_tag(sd15.uneven)))
    assert same(made.image, host.image(klora(sd15.uneven)))
    assert "K-LoRA tag: used instead of the panel" in made.infotext
    assert "used instead of the panel" in str(made.info.get("comments", "")) + made.said


def test_a_negative_prompt_has_no_tags(host: Host, sd15: Model):
    made = host.run(plain(negative_prompt="blurry " + klora_tag(sd15.uneven)))
    assert "K-LoRA content" not in made.infotext and host.last_job()["rewritten"] == 0


def test_wrong_tags_are_refused_before_sampling(host: Host, sd15: Model, subtests: pytest.Subtests):
    pair = sd15.uneven
    wrong = {
        klora_tag(Pair(pair.content, "nobody")): "style: there is no LoRA named 'nobody'",
        klora_tag(pair, "much"): "content_weight: must be a number",
        klora_tag(pair, "balanse=1"): "'balanse': is not a K-LoRA setting",
        klora_tag(pair) * 2: "there are 2 K-LoRA tags",
        f"[{klora_tag(pair)}:dog:0.5]": "is inside [ ], which schedules words",
        klora_tag(pair)[:-1]: "is not closed by '>'",
        klora_tag(Pair(pair.content, host.sdxl.attention.style)): host.sdxl.attention.style,
    }
    for text, sentence in wrong.items():
        with subtests.test(text=text):
            assert sentence in refused(host, prompt=PROMPT + text)


def test_prompts_from_file_have_a_tag_each(host: Host, sd15: Model):
    """The third has none, and the panel is off."""
    one, two = klora_tag(sd15.uneven), klora_tag(sd15.attention, "method=direct")
    lines = [f"{PROMPT}{one}", f"{PROMPT}{two}", PROMPT]
    fields = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", "\n".join(lines)]}
    made = host.run(plain(prompt="", **fields))
    wanted = [klora(sd15.uneven), klora(sd15.attention, {"method": "direct"}), plain()]
    for image, job in zip(made.images[-3:], wanted, strict=True):
        assert same(image, host.image(job))


# --- the hires pass ---


def test_own_balance_of_the_hires_pass(host: Host, sd15_witness: Witness):
    pair = host.sd15.uneven
    settings = {"balance": -0.5, "hires": "own", "hires_balance": 0.5}
    made = assert_like_reference(host, pair, settings, passes=2, **HIRES)
    assert difference(made.image, host.image(klora(pair, {"balance": -0.5}, **HIRES))) > APART
    assert "K-LoRA hires: own, K-LoRA hires_balance: 0.5" in made.infotext
    sd15_witness.assert_unchanged()


def test_a_hires_pass_without_the_pair(host: Host, sd15_witness: Witness):
    """Nothing of it: the reference has its tags in the prompt, and a hires prompt without them."""
    pair = host.sd15.uneven
    expected = host.run(reference(host.lora, pair, {"hires": "off"}, **HIRES) | {"hr_prompt": PROMPT})
    assert_reference_at_work(host.reference(), 1)
    made = host.run(klora(pair, {"hires": "off"}, **HIRES))
    assert largest_difference(made, expected) <= 1
    assert difference(made.image, host.image(klora(pair, **HIRES))) > APART
    tagged = klora(pair, {"hires": "off"}, **HIRES) | {"prompt": PROMPT + tag(pair.content) + tag(pair.style)}
    assert same(host.image(tagged), made.image)
    sd15_witness.assert_unchanged()


def test_the_hires_prompt_has_a_tag_of_its_own(host: Host, sd15_witness: Witness):
    pair = host.sd15.uneven
    balanced = {"balance": -0.5, "hires": "own", "hires_balance": 0.5}
    first, hires = klora_tag(pair, "balance=-0.5"), klora_tag(pair, "balance=0.5")
    made = host.run(plain(prompt=PROMPT + first, hr_prompt=PROMPT + hires, **HIRES))
    assert same(made.image, host.image(klora(pair, balanced, **HIRES)))
    assert "K-LoRA hires tag: used" in made.infotext
    swapped = klora_tag(Pair(pair.style, pair.content))
    other = host.image(plain(prompt=PROMPT + first, hr_prompt=PROMPT + swapped, **HIRES))
    assert difference(other, made.image) > APART
    sd15_witness.assert_unchanged()


def test_tags_keep_their_weight_where_the_hires_prompt_has_none(host: Host, sd15: Model):
    pair, other = sd15.uneven, "a dog"
    asked = klora(pair, {"content_weight": 0.5}, hr_prompt=other, **HIRES)
    tagged = klora(pair, hr_prompt=other, **HIRES) | {"prompt": PROMPT + tag(pair.content, 0.5, 0.5)}
    assert same(host.image(tagged), host.image(asked))


# --- names, and what images tell of them ---

NAMES = (" first", "last ", "a, b", "a: b", "512x512", '"quoted"', "Ünï", "(x:1.1)")


@pytest.fixture(scope="module")
def odd(host: Host) -> list[str]:
    tensors = files.read(host.lora / f"{host.sd15.uneven.style}.safetensors")
    for name in NAMES:
        files.write(host.lora / f"{name}.safetensors", tensors)
    for folder in ("one", "two"):
        (host.lora / folder).mkdir()
    files.write(host.lora / "one" / "doubled.safetensors", tensors)
    files.write(host.lora / "two" / "doubled.safetensors", files.read(host.lora / f"{host.sd15.uneven.content}.safetensors"))
    files.write(host.lora / "None.safetensors", tensors)
    host.refresh_loras()
    return list(NAMES)


def test_odd_names_can_be_chosen(host: Host, sd15: Model, odd: list[str], subtests: pytest.Subtests):
    wanted = host.image(klora(sd15.uneven))
    for name in odd:
        with subtests.test(name=name):
            pair = Pair(sd15.uneven.content, name)
            assert same(host.image(klora(pair)), wanted)
            escaped = Pair(pair.content, name.replace(":", "%3A"))
            assert same(host.image(plain(prompt=PROMPT + klora_tag(escaped))), wanted)


@INFOTEXT
def test_odd_names_come_back_from_the_infotext(host: Host, sd15: Model, odd: list[str], subtests: pytest.Subtests):
    for name in odd:
        with subtests.test(name=name):
            made: Result = host.run(klora(Pair(sd15.uneven.content, name)))
            assert same(host.image({"infotext": made.infotext}), made.image)


@INFOTEXT
def test_an_infotext_that_cannot_be_read_is_refused(host: Host, sd15: Model):
    made = host.run(klora(sd15.uneven, {"alpha": 2}))
    answer = host.ask("/sdapi/v1/txt2img", {"infotext": made.infotext.replace("K-LoRA alpha: 2.0", "K-LoRA alpha: much")})
    assert answer.status == 422 and "alpha: must be a number from 0 to 1e+09, not 'much'" in answer.text


@INFOTEXT
def test_an_image_by_tag_comes_back_from_its_infotext(host: Host, sd15: Model):
    made = host.run(plain(prompt=PROMPT + klora_tag(sd15.uneven, "alpha=2")))
    again = host.run({"infotext": made.infotext})
    assert same(again.image, made.image) and "K-LoRA tag: used instead" not in again.infotext


def test_names_that_cannot_be_chosen_are_refused_by_what_they_are(host: Host, sd15: Model, odd: list[str]):
    def said(name: str) -> str:
        answer = host.ask("/sdapi/v1/txt2img", klora(Pair(sd15.uneven.content, name)))
        assert answer.status == 422
        return answer.body["detail"]

    assert "'doubled' is the name of 2 different files" in said("doubled")
    assert "'None' stands for none, so that the file" in said("None")
