"""Beside sd-webui-regional-prompter, which gives regions of the image prompts of their own, and in Latent mode LoRAs."""

from __future__ import annotations

import pytest

from .. import files
from ..checks import FAR, same
from ..host import Host, difference
from ..jobs import HIRES, Model, Pair, plain, tag
from ..test_safety import ENGINES
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, with_klora

EXTENSION = "sd-webui-regional-prompter"
TITLE = "Regional Prompter"
WITHOUT = {"prompt": "a cat BREAK a dog"}
ONE_BY_ONE = "Use LoHa or other"  # LoRAs are merged anew for every region, where they are otherwise added at every forward

pytestmark = pytest.mark.hosts("a1111", "forge")


def regions(
    mode: str,
    prompt: str = WITHOUT["prompt"],
    options: list[str] | None = None,
    negative: str = "0",
    common: bool = False,
) -> dict:
    """Two columns.  negative: how much of the regions' LoRAs there is for the negative prompt.

    common: whether the prompt begins with a part for both.
    """
    where = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "", False, common, False, mode]
    arguments = [*where, options or [], negative, negative, "0", "", "0", "0", False]
    return {"prompt": prompt, "alwayson_scripts": {TITLE: {"args": arguments}}}


def used(model: Model) -> dict:
    return regions("Latent")  # registers every callback that it ever does


@pytest.fixture(scope="module")
def pair(witness: Witness) -> Pair:
    """Without text encoder parts: in Latent mode the extension reads other weights in the reference's tags."""
    host, plainer = witness.host, witness.model.attention
    for seed, name in enumerate((plainer.content, plainer.style)):
        tensors = files.read(host.lora / f"{name}.safetensors")
        files.write(host.lora / f"uneven_{name}.safetensors", files.uneven(tensors, seed))
    host.refresh_loras()
    return Pair(f"uneven_{plainer.content}", f"uneven_{plainer.style}")


TAGGED = {
    "first region": ("a cat {tag} BREAK a dog", 1),
    "last region": ("a cat BREAK a dog {tag}", 1),
    "common part": ("a photo {tag} ADDCOMM a cat BREAK a dog", 2),  # the extension writes it into both regions
}
PLACES = ["a cat {other} {{tag}} BREAK a dog", "a cat {other} BREAK a dog {{tag}}"]
WEIGHTS = (0.5, 0.7)  # of the text encoder part, of the denoiser's

MODES = pytest.mark.parametrize("mode", ["Attention", "Latent"])


def beside_loras(kind: str, engine: str) -> str:
    """On Forge the extension has the regions' LoRAs added at every forward: merge is refused there, auto takes bypass."""
    return "auto" if kind == "forge" and engine == "merge" else engine


@MODES
@ENGINES
def test_regions(witness: Witness, pair: Pair, mode: str, engine: str):
    assert_combines(witness, pair, {"engine": engine}, without=WITHOUT, tags=False, **regions(mode))


@MODES
def test_in_both_passes_of_hires_fix(witness: Witness, pair: Pair, mode: str):
    assert_combines(witness, pair, without=WITHOUT | HIRES, passes=2, tags=False, **regions(mode), **HIRES)


@ENGINES
def test_another_lora_in_one_region(witness: Witness, pair: Pair, kind: str, engine: str):
    settings = {"engine": beside_loras(kind, engine)}
    other = tag(witness.model.full.style)
    fields = regions("Latent", f"a cat {other} BREAK a dog")
    without = {"prompt": WITHOUT["prompt"] + other}
    assert_combines(witness, pair, settings, without=without, tags=False, **fields)


def assert_tag_gives_weight(witness: Witness, where: str, times: int, settings: dict) -> None:
    """where: a prompt with a place for the tag.  times: how often the extension writes the tag into its own prompt."""
    pair, host = witness.model.uneven, witness.host
    weights = {"content_te_weight": times * WEIGHTS[0], "content_weight": times * WEIGHTS[1]}
    fields = regions("Latent", where.format(tag=""), common="ADDCOMM" in where)
    expected = host.image(with_klora(pair, settings | weights, **fields))
    got = host.image(with_klora(pair, settings, **fields | {"prompt": where.format(tag=tag(pair.content, *WEIGHTS))}))
    assert difference(expected, host.known_image(with_klora(pair, settings, **fields))) > FAR
    assert difference(got, expected) <= 1
    witness.assert_unchanged()


@pytest.mark.parametrize("where, times", TAGGED.values(), ids=TAGGED)
def test_a_tag_of_the_pair_gives_its_weight(witness: Witness, where: str, times: int):
    """For the whole image, text encoder part and all: it is not the extension's to regulate, nor is it added again."""
    assert_tag_gives_weight(witness, where, times, {})


@pytest.mark.hosts("a1111")
@pytest.mark.parametrize("place", PLACES)
def test_a_tag_of_the_pair_beside_another_lora_in_one_region(witness: Witness, place: str):
    assert_tag_gives_weight(witness, place.format(other=tag(witness.model.full.style)), 1, {"engine": "bypass"})


@pytest.mark.hosts("a1111")  # on Forge the extension gives a LoRA of two regions another strength than one for the image
@ENGINES
@pytest.mark.parametrize("options", [[], [ONE_BY_ONE]], ids=["added", "merged"])
def test_one_lora_beside_another_in_one_region(witness: Witness, pair: Pair, kind: str, options: list[str], engine: str):
    """Merged, the WebUI rewrites the weights for every region, several times within one step of ours."""
    host, other = witness.host, tag(witness.model.full.style)
    files.write(host.lora / "twice.safetensors", files.read(host.lora / f"{pair.content}.safetensors"))
    host.refresh_loras()
    tagged = f"a cat {other} {tag(pair.content)} BREAK a dog {tag('twice')}"
    expected = host.image(plain(**regions("Latent", tagged, options, negative="0,1,0")))
    fields = regions("Latent", f"a cat {other} BREAK a dog", options)
    got = host.image(with_klora(pair, {"method": "content", "engine": beside_loras(kind, engine)}, **fields))
    assert difference(expected, host.known_image(plain(**fields))) > FAR
    assert difference(got, expected) <= 1
    witness.assert_unchanged()


@pytest.mark.hosts("a1111")  # the same
@MODES
@pytest.mark.parametrize("role", ["content", "style"])
def test_one_lora_with_its_text_encoder_part(witness: Witness, mode: str, role: str):
    """It acts in every region, and for the negative prompt: as a tag in each of them, which must be of other files."""
    pair, host = witness.model.full, witness.host
    name, other = (pair.content, "style") if role == "content" else (pair.style, "content")
    files.write(host.lora / "twice.safetensors", files.read(host.lora / f"{name}.safetensors"))
    host.refresh_loras()
    second = tag("twice") if mode == "Latent" else ""
    expected = host.image(plain(**regions(mode, f"a cat {tag(name)} BREAK a dog {second}", negative="1,0")))
    got = host.image(with_klora(pair, {"method": role, f"{other}_te_weight": 0}, **regions(mode)))
    assert difference(expected, host.known_image(plain(**regions(mode)))) > FAR
    assert difference(got, expected) <= 1
    witness.assert_unchanged()


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    tagged = f"a cat {tag(host.sd15.full.style)} BREAK a dog"
    # Latent mode first, as in the other host: on Forge what it leaves acts in the Attention mode of later jobs
    assert_off_is_off(host, host_without_klora, regions("Latent", tagged), regions("Attention", tagged))


def assert_refused_beside_region(witness: Witness, sentence: str, prompt: str, engine: str) -> None:
    """After any error the extension leaves its functions and an option of the WebUI replaced, but no image may differ."""
    host = witness.host
    answer = host.ask("/sdapi/v1/txt2img", with_klora(witness.model.uneven, {"engine": engine}, **regions("Latent", prompt)))
    assert answer.status == 422 and sentence in answer.text, answer.text
    assert host.last_job()["calls"] == 0
    assert same(host.image(witness.jobs[0]), witness.images[0])
    assert host.weights() == witness.weights


@pytest.mark.hosts("forge")  # there the extension has no weight for a region's LoRA once the pair has a tag
@pytest.mark.parametrize("place", PLACES)
def test_a_tag_of_the_pair_beside_another_lora_in_one_region_is_refused(witness: Witness, place: str):
    name = witness.model.uneven.content
    prompt = place.format(other=tag(witness.model.full.style)).format(tag=tag(name))
    assert_refused_beside_region(witness, f"the tag <lora:{name}> is of a LoRA of the pair", prompt, "bypass")


@pytest.mark.hosts("forge")
def test_merge_beside_a_lora_in_one_region_is_refused(witness: Witness):
    prompt = f"a cat {tag(witness.model.full.style)} BREAK a dog"
    assert_refused_beside_region(witness, "of a model that adds LoRAs at every forward", prompt, "merge")
