"""Beside sd-webui-loractl, which gives other LoRAs of the prompt a schedule of weights within a pass."""

from __future__ import annotations

import pytest

from ..checks import same
from ..host import Host
from ..jobs import HIRES, PLAIN, Model, tag
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, assert_refused, with_klora

EXTENSION = "sd-webui-loractl"

pytestmark = pytest.mark.hosts("a1111")


def prompt(model: Model, words: str) -> str:
    """A third LoRA, with a schedule for its weight."""
    return f"{PLAIN['prompt']} <lora:{model.attention.content}:{words}>"


def used(model: Model) -> dict:
    return {"prompt": prompt(model, "1@0,0@1")}


def without(model: Model) -> dict:
    return {"prompt": PLAIN["prompt"] + tag(model.attention.content)}


@ENGINES
@pytest.mark.parametrize("words", ["1@0,0@1", "0@0,1@4", "0.7:0@0,1.2@3,0.2@5"])
def test_another_loras_schedule(witness: Witness, words: str, engine: str):
    fields = {"prompt": prompt(witness.model, words)}
    assert_combines(witness, witness.model.uneven, {"engine": engine}, without=without(witness.model), **fields)


def test_another_weight_in_the_second_pass_of_hires_fix(witness: Witness):
    fields = {"prompt": prompt(witness.model, "1@0,0@1:hr=0@0,1@1")} | HIRES
    assert_combines(witness, witness.model.uneven, without=without(witness.model) | HIRES, passes=2, **fields)


@pytest.mark.parametrize("words", ["1@0,0@1", "0.5:0@0,1@1"])
def test_a_schedule_on_a_lora_of_the_pair_is_refused(witness: Witness, words: str):
    name = witness.model.uneven.content
    said = f"the tag <lora:{name}:{words}> has a weight that is not"
    assert_refused(witness, said, prompt=f"{PLAIN['prompt']} <lora:{name}:{words}>")


def test_a_hires_weight_on_a_lora_of_the_pair_is_refused(witness: Witness):
    name = witness.model.uneven.content
    assert_refused(witness, "has hr, which does not act on a LoRA of the pair", prompt=f"a cat <lora:{name}:1:hr=0.5>")


def test_a_plain_weight_on_a_lora_of_the_pair_is_taken(witness: Witness):
    """The extension puts a weight of its own into the tag before the WebUI reads it."""
    pair, weight = witness.model.uneven, {"content_weight": 0.6}
    scheduled = used(witness.model)["prompt"]
    got = assert_combines(witness, pair, weight, without=without(witness.model), prompt=scheduled)
    tagged = witness.host.image(with_klora(pair, prompt=f"{scheduled} <lora:{pair.content}:0.6>"))
    assert same(tagged, got.image)


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    assert_off_is_off(host, host_without_klora, used(host.sd15), {"prompt": prompt(host.sd15, "0@0,1@4")})
