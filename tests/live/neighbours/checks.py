"""K-LoRA beside another extension: both act, as they do alone, and everything is as before."""

from __future__ import annotations

from ..checks import FAR, assert_reference_at_work, largest_difference, same
from ..host import Host, Result, difference
from ..jobs import TITLE, Pair, klora, plain, reference
from ..witness import Witness


class Beside(Witness):
    """What the other extension replaces in the WebUI, and hooks into its model, is as it was before."""

    def assert_untouched(self) -> None:
        pass


def both(job: dict, fields: dict) -> dict:
    """``job`` with the arguments of another script."""
    return job | fields | {"alwayson_scripts": job["alwayson_scripts"] | fields.get("alwayson_scripts", {})}


def with_klora(pair: Pair, settings: dict | None = None, **fields: object) -> dict:
    return both(klora(pair, settings), fields)


def with_reference(host: Host, pair: Pair, settings: dict | None = None, tags: bool = True, **fields: object) -> dict:
    """tags: False for a pair without text encoder parts, where the extension would make something of the tags."""
    prompt = {"prompt": fields.pop("prompt")} if "prompt" in fields else {}
    job = both(reference(host.lora, pair, settings, **prompt), fields)
    return job if tags else job | {"prompt": plain(**prompt)["prompt"]}


def off(pair: Pair, **fields: object) -> dict:
    return both(plain() | {"alwayson_scripts": {TITLE: {"args": [{"enabled": False, **vars(pair)}]}}}, fields)


def assert_combines(
    witness: Witness,
    pair: Pair,
    settings: dict | None = None,
    *,
    without: dict,
    passes: int = 1,
    within: int = 1,
    tags: bool = True,
    **fields: object,
) -> Result:
    """K-LoRA and the extension together are the brute force and the extension together; everything is clean afterwards.

    fields: of a job in which the extension acts.  without: of the same job without it.
    """
    host = witness.host
    expected = host.run(with_reference(host, pair, settings, tags, **fields))
    assert_reference_at_work(host.reference(), passes)
    got = host.run(with_klora(pair, settings, **fields))
    assert largest_difference(got, expected) <= within
    assert difference(got.image, host.known_image(plain(**fields))) > FAR
    assert not same(got.image, host.known_image(with_klora(pair, settings, **without)))
    witness.assert_unchanged()
    return got


def assert_refused(witness: Witness, sentence: str, **fields: object) -> None:
    answer = witness.host.ask("/sdapi/v1/txt2img", with_klora(witness.model.uneven, **fields))
    assert answer.status == 422, answer.text
    assert sentence in answer.text, answer.text
    assert witness.host.last_job()["calls"] == 0
    witness.assert_unchanged()


def assert_off_is_off(host: Host, host_without_klora: Host, *jobs: dict) -> None:
    """jobs: the fields of jobs in which the other extension acts."""
    for fields in jobs:
        expected = host_without_klora.run(plain(**fields))
        for job in (plain(**fields), off(host.sd15.full, **fields)):
            assert largest_difference(host.run(job), expected) == 0
        assert largest_difference(host.run(with_klora(host.sd15.uneven, **fields)), expected) > FAR
        assert largest_difference(host.run(plain(**fields)), expected) == 0
