"""Beside sd-webui-lora-block-weight, which changes other LoRAs of the prompt by block, and within a pass by step."""

from __future__ import annotations

import pytest

from ..host import Host
from ..jobs import HIRES, PLAIN, Model, tag
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, assert_refused

EXTENSION = "sd-webui-lora-block-weight"

pytestmark = pytest.mark.hosts("a1111", "forge")


def prompt(model: Model, words: str) -> str:
    """A third LoRA, with words of the extension's in its tag."""
    return f"{PLAIN['prompt']} <lora:{model.attention.content}:0.8:{words}>"


def used(model: Model) -> dict:
    return {"prompt": prompt(model, "lbw=INALL:stop=3")}


def without(model: Model) -> dict:
    return {"prompt": PLAIN["prompt"] + tag(model.attention.content, 0.8, 0.8)}


@ENGINES
@pytest.mark.parametrize("words", ["lbw=INALL", "stop=3", "start=3", "step=2-4", "lbw=MIDD:stop=3"])
def test_another_loras_blocks_and_steps(witness: Witness, words: str, engine: str):
    model = witness.model
    fields = {"prompt": prompt(model, words)}
    assert_combines(witness, model.uneven, {"engine": engine}, without=without(model), **fields)


def test_in_both_passes_of_hires_fix(witness: Witness):
    fields = used(witness.model) | HIRES
    assert_combines(witness, witness.model.uneven, without=without(witness.model) | HIRES, passes=2, **fields)


@pytest.mark.parametrize(
    ("words", "told"), [("lbw=INALL", "lbw"), ("lbw=INALL:stop=3", "lbw, stop"), ("start=3", "start")]
)
def test_its_words_on_a_lora_of_the_pair_are_refused(witness: Witness, words: str, told: str):
    name = witness.model.uneven.content
    said = f"the tag <lora:{name}:1:{words}> has {told}, which does not act on a LoRA of the pair"
    assert_refused(witness, said, prompt=f"{PLAIN['prompt']} <lora:{name}:1:{words}>")


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    assert_off_is_off(host, host_without_klora, used(host.sd15), {"prompt": prompt(host.sd15, "lbw=MIDD:step=2-4")})
