"""The X/Y/Z plot of the real WebUI: refused before the first image, or a sentence in the cell's place."""

from __future__ import annotations

import numpy as np
import pytest

from .checks import FAR, same
from .host import Host, Result, difference
from .jobs import PLAIN, Model, Pair, klora, plain, tag
from .test_api import script_info
from .witness import Witness

METHODS = ["content", "style", "direct", "switch", "klora", "klora s*", "est", "np", "average", "ties"]


def plot(host: Host, job: dict, *axes: tuple[str, str | list[str]]) -> dict:
    """A job with a plot.  A list of values is chosen, as with the fill button; a text is typed."""
    args = script_info(host, "x/y/z plot")["args"]
    choices = args[0]["choices"]
    given = []
    for label, values in [*axes, ("Nothing", ""), ("Nothing", ""), ("Nothing", "")][:3]:
        typed = isinstance(values, str)
        given += [choices.index(label), values if typed else "", [] if typed else values]
    wanted = {"Draw legend": False, "Include Sub Images": True}
    rest = [wanted.get(arg["label"], arg["value"]) for arg in args[9:]]
    return job | {"script_name": "x/y/z plot", "script_args": [*given, *rest]}


def run(host: Host, job: dict, *axes: tuple[str, str | list[str]]) -> tuple[Result, list[np.ndarray]]:
    result = host.run(plot(host, job, *axes))
    return result, result.images[1:]


def refused(host: Host, job: dict, *axes: tuple[str, str | list[str]]) -> str:
    """Without any image: the last job is still the one before, which made another number of calls than a cell does."""
    assert job["steps"] != 3
    host.run(plain(steps=3))
    answer = host.ask("/sdapi/v1/txt2img", plot(host, job, *axes))
    assert answer.status == 422, answer.text[:500]
    assert host.last_job()["calls"] == 3
    return answer.body["detail"]


def test_what_is_known_is_refused_before_the_first_image(host: Host, sd15: Model, subtests: pytest.Subtests):
    pair = sd15.uneven
    listed = [pair.content, pair.style]
    alien = host.sdxl.attention.style
    cases = {
        "alpha: must be a number from 0 to 1e+09, not 'abc'": [("K-LoRA alpha", "1, abc")],
        "content: there is no LoRA named 'nobody'": [("K-LoRA alpha", "1"), ("K-LoRA content", [pair.content, "nobody"])],
        "2 of the plot's 4 cells cannot be drawn": [("K-LoRA content", listed), ("K-LoRA style", listed)],
        "1 of the plot's 4 cells cannot be drawn: scale 's*', alpha 0.0": [
            ("K-LoRA scale", ["s", "s*"]), ("K-LoRA alpha", "0, 1"),
        ],
        f"1 of the plot's 2 cells cannot be drawn: style '{alien}'": [("K-LoRA style", [pair.style, alien])],
    }  # fmt: skip
    for sentence, axes in cases.items():
        with subtests.test(sentence=sentence):
            assert sentence in refused(host, klora(pair), *axes)
    written = plain(prompt=f"{PLAIN['prompt']} <klora:{pair.content}:{pair.style}:balance=0>")
    assert "Prompt S/R 'balance=9'" in refused(host, written, ("Prompt S/R", "balance=0, balance=9"))


def test_a_plot_is_judged_by_the_checkpoint_that_was_just_chosen(host: Host, sd15: Model):
    """The Forges load it when the first cell is drawn."""
    host.image(plain())
    host.use(host.sdxl.checkpoint)
    _, cells = run(host, klora(host.sdxl.attention, steps=2), ("K-LoRA alpha", "1, 2"))
    assert len(cells) == 2
    host.use(sd15.checkpoint)
    host.image(plain())


def test_a_cell_that_cannot_be_drawn_carries_the_sentence(host: Host, sd15_witness: Witness):
    """What a weight in a tag is, only the job finds out."""
    pair = host.sd15.uneven
    size = {"width": 256, "height": 256, "steps": 2}
    job = klora(pair, prompt=PLAIN["prompt"] + tag(pair.content, 0.5, 0.5), **size)
    result, (drawn, told) = run(host, job, ("Prompt S/R", ":0.5:0.5, :much"))
    assert same(drawn, host.image(job))
    assert told.shape == drawn.shape and told.mean() > 200, "dark words on a light ground"
    assert "K-LoRA not drawn" in result.infotext and "has a weight that is not a number" in result.infotext
    sd15_witness.assert_unchanged()


def test_comparing_methods(host: Host, sd15: Model):
    pair = sd15.uneven
    _, cells = run(host, klora(pair), ("K-LoRA compare methods", []))
    assert len(cells) == len(METHODS)
    for cell, value in zip(cells, METHODS, strict=True):
        method, _, scale = value.partition(" ")
        assert same(cell, host.image(klora(pair, {"method": method, "scale": scale or "s"}))), value
    assert difference(cells[0], cells[1]) > FAR


def test_axes_of_loras_and_numbers(host: Host, sd15: Model):
    """Whichever the plot takes first, each cell is its own; a range of numbers is the plot's."""
    one, two = sd15.uneven.content, sd15.full.content
    _, cells = run(host, klora(sd15.uneven), ("K-LoRA balance", "-1-1 (+1)"), ("K-LoRA content", [one, two]))
    wanted = [(content, balance) for content in (one, two) for balance in (-1, 0, 1)]
    for cell, (content, balance) in zip(cells, wanted, strict=True):
        assert same(cell, host.image(klora(Pair(content, sd15.uneven.style), {"balance": balance})))


def test_words_of_a_tag_are_varied_by_the_plots_own_axis(host: Host, sd15: Model):
    pair = sd15.uneven
    job = plain(prompt=f"{PLAIN['prompt']}<klora:{pair.content}:{pair.style}:balance=0.0>")
    _, cells = run(host, job, ("Prompt S/R", "balance=0.0, balance=1.0"))
    for cell, balance in zip(cells, (0, 1), strict=True):
        assert same(cell, host.image(klora(pair, {"balance": balance})))


def test_an_axis_over_a_tag(host: Host, sd15: Model):
    """The axis changes what the tag says, in the cell's prompt too."""
    pair = sd15.uneven
    job = plain(prompt=f"{PLAIN['prompt']}<klora:{pair.content}:{pair.style}:alpha=2>")
    result, cells = run(host, job, ("K-LoRA balance", "0.5, 1"))
    for cell, balance in zip(cells, (0.5, 1), strict=True):
        assert same(cell, host.image(klora(pair, {"alpha": 2, "balance": balance})))
    assert f"<klora:{pair.content}:{pair.style}:alpha=2.0:balance=1.0>" in result.info["infotexts"][-1]
