"""Beside sd-webui-regional-prompter, which gives regions of the image prompts of their own, and in Latent mode LoRAs."""

from __future__ import annotations

import pytest

from ..checks import FAR
from ..host import Host, difference
from ..jobs import HIRES, Model, Pair, plain, tag
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, with_klora

EXTENSION = "sd-webui-regional-prompter"
TITLE = "Regional Prompter"
WITHOUT = {"prompt": "a cat BREAK a dog"}
ONE_BY_ONE = "Use LoHa or other"  # LoRAs are merged anew for every region, where they are otherwise added at every forward

pytestmark = pytest.mark.hosts("a1111")


def regions(mode: str, prompt: str = WITHOUT["prompt"], options: list[str] | None = None, negative: str = "0") -> dict:
    """Two columns.  negative: how much of the regions' LoRAs there is for the negative prompt."""
    where = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "", False, False, False, mode]
    arguments = [*where, options or [], negative, negative, "0", "", "0", "0", False]
    return {"prompt": prompt, "alwayson_scripts": {TITLE: {"args": arguments}}}


def used(model: Model) -> dict:
    return regions("Attention")


MODES = pytest.mark.parametrize("mode", ["Attention", "Latent"])


@MODES
@ENGINES
def test_regions(witness: Witness, mode: str, engine: str):
    """A pair without text encoder parts: in Latent mode the extension reads other weights in the reference's tags."""
    pair = Pair(witness.model.attention.content, witness.model.attention.style)
    assert_combines(witness, pair, {"engine": engine}, without=WITHOUT, tags=False, **regions(mode))


@MODES
def test_in_both_passes_of_hires_fix(witness: Witness, mode: str):
    fields = regions(mode) | HIRES
    assert_combines(witness, witness.model.attention, without=WITHOUT | HIRES, passes=2, tags=False, **fields)


@pytest.mark.parametrize("options", [[], [ONE_BY_ONE]], ids=["added", "merged"])
@ENGINES
def test_another_lora_in_one_region_only(witness: Witness, options: list[str], engine: str):
    other = tag(witness.model.full.style)
    fields = regions("Latent", f"a cat {other} BREAK a dog", options)
    without = {"prompt": WITHOUT["prompt"] + other}
    assert_combines(witness, witness.model.attention, {"engine": engine}, without=without, tags=False, **fields)


@MODES
@pytest.mark.parametrize("role", ["content", "style"])
def test_one_lora_with_its_text_encoder_part(witness: Witness, mode: str, role: str):
    """It acts in every region, and for the negative prompt: as its tag in each of them."""
    pair, host = witness.model.full, witness.host
    other = "style" if role == "content" else "content"
    name = getattr(pair, role)
    tagged = f"a cat <lora:{name}:1> BREAK a dog <lora:{name}:1>" if mode == "Latent" else f"a cat BREAK a dog <lora:{name}:1>"
    expected = host.image(plain(**regions(mode, tagged, negative="1")))
    fields = regions(mode, negative="1")
    got = host.image(with_klora(pair, {"method": role, f"{other}_te_weight": 0}, **fields))
    assert difference(expected, host.known_image(plain(**fields))) > FAR
    assert difference(got, expected) <= 1
    witness.assert_unchanged()


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    tagged = f"a cat {tag(host.sd15.full.style)} BREAK a dog"
    assert_off_is_off(host, host_without_klora, regions("Attention", tagged), regions("Latent", tagged))
