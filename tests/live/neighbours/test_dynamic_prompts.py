"""Beside sd-dynamic-prompts, which writes every image's prompt from one template, tags included."""

from __future__ import annotations

import pytest

from ..checks import same
from ..host import Host
from ..jobs import Model
from ..witness import Witness
from .checks import assert_combines, assert_off_is_off, with_klora

EXTENSION = "sd-dynamic-prompts"
TEMPLATE = "a {cat|dog|bird} on a {red|blue|green} {chair|table}"
# some of its versions ask for options that they do not define
OPTIONS = {
    "dp_ignore_whitespace": False, "dp_write_raw_template": False, "dp_write_prompts_to_file": False,
    "dp_parser_variant_start": "{", "dp_parser_variant_end": "}", "dp_parser_wildcard_wrap": "__",
    "dp_limit_jinja_prompts": False, "dp_auto_purge_cache": False, "dp_wildcard_manager_no_dedupe": False,
    "dp_wildcard_manager_no_sort": False, "dp_wildcard_manager_shuffle": False,
    "dp_magicprompt_default_model": "", "dp_magicprompt_batch_size": 1,
}  # fmt: skip

pytestmark = pytest.mark.hosts("a1111", "forge")


def prepare(host: Host) -> dict:
    wildcards = host.folder / "wildcards"
    wildcards.mkdir()
    name = host.sd15.uneven.content
    (wildcards / "subject.txt").write_text("".join(f"<lora:{name}:{weight}>\n" for weight in (0.3, 0.6, 0.9)))
    return OPTIONS | {"wildcard_dir": str(wildcards)}


def used(model: Model) -> dict:
    return {"prompt": TEMPLATE, "n_iter": 3}


def test_templates(witness: Witness):
    without = {"prompt": "a cat on a red chair", "n_iter": 3}
    got = assert_combines(witness, witness.model.uneven, without=without, passes=3, **used(witness.model))
    assert len(set(got.info["all_prompts"])) > 1


@pytest.mark.parametrize("tag", ["", "<lora:{name}:{{0.3|0.6|0.9}}>", "__subject__"], ids=["none", "variants", "wildcard"])
def test_every_image_is_that_of_its_prompt_written_out(witness: Witness, tag: str):
    """Also where the weight of a LoRA of the pair comes from the template."""
    pair = witness.model.uneven
    got = witness.host.run(with_klora(pair, prompt=TEMPLATE + tag.format(name=pair.content), n_iter=3))
    prompts, seeds = got.info["all_prompts"], got.info["all_seeds"]
    assert len(set(prompts)) > 1 and not any("{" in prompt or "__" in prompt for prompt in prompts)
    for image, prompt, seed in zip(got.images, prompts, seeds, strict=True):
        assert same(image, witness.host.image(with_klora(pair, prompt=prompt, seed=seed)))
    witness.assert_unchanged()


def test_off_is_the_webui_without_klora(host: Host, host_without_klora: Host):
    assert_off_is_off(host, host_without_klora, used(host.sd15))
