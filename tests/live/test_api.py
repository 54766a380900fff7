"""The other ways in: positional arguments, infotext, XYZ plot."""

from __future__ import annotations

import pytest

from .checks import FAR, same
from .host import Host, difference
from .jobs import PLAIN, TITLE, Model, klora, plain, scripts, tag

POSITIONS = (
    "enabled", "content", "style", "content_weight", "style_weight", "content_te_weight", "style_te_weight", "method",
    "alpha", "beta", "gamma", "scale", "k", "layers", "progress", "engine", "show_map", "switch_every", "balance", "mu",
    "density", "hires", "hires_balance",
)  # fmt: skip
SETTINGS = {"alpha": 2.0, "beta": 0.3, "gamma": "mean-ratio", "content_weight": 0.8, "layers": "attention"}


def script_info(host: Host, name: str, is_img2img: bool = False) -> dict:
    wanted = (name.lower(), is_img2img)
    (found,) = (x for x in host.must("/sdapi/v1/script-info") if (x["name"], x["is_img2img"]) == wanted)
    return found


@pytest.mark.parametrize("is_img2img", [False, True])
def test_script_info(host: Host, is_img2img: bool):
    info = script_info(host, TITLE, is_img2img)
    assert info["is_alwayson"]
    assert len(info["args"]) >= len(POSITIONS)
    assert not info["args"][0]["value"]


def positional(host: Host, settings: dict) -> list:
    args = [arg["value"] for arg in script_info(host, TITLE)["args"]]
    for name, value in settings.items():
        args[POSITIONS.index(name)] = value
    return args


def test_positional_arguments(host: Host, sd15: Model):
    chosen = {"enabled": True, **vars(sd15.uneven)}
    by_name = host.image(klora(sd15.uneven, SETTINGS))
    args = positional(host, chosen | SETTINGS)
    assert same(host.image(plain(alwayson_scripts={TITLE: {"args": args}})), by_name)
    assert difference(by_name, host.image(klora(sd15.uneven))) > FAR
    short = [*chosen.values()]
    assert same(host.image(plain(alwayson_scripts={TITLE: {"args": short}})), host.image(klora(sd15.uneven)))


def test_defaults_of_the_list_are_off(host: Host, sd15: Model):
    args = positional(host, {})
    assert same(host.image(plain(alwayson_scripts={TITLE: {"args": args}})), host.image(plain()))


def test_wrong_positional_argument_is_refused(host: Host, sd15: Model):
    args = positional(host, {"enabled": True, **vars(sd15.uneven), "alpha": "abc"})
    answer = host.ask("/sdapi/v1/txt2img", plain(alwayson_scripts={TITLE: {"args": args}}))
    assert answer.status == 422
    assert "alpha" in answer.text


def test_infotext_tells_what_was_done(host: Host, sd15: Model):
    made = host.run(klora(sd15.uneven, SETTINGS))
    hashes = made.info["extra_generation_params"]["Lora hashes"]
    assert {x.split(":")[0].strip() for x in hashes.split(",")} == {sd15.uneven.content, sd15.uneven.style}
    for name, value in (SETTINGS | vars(sd15.uneven)).items():
        assert f"K-LoRA {name}: {value}" in made.infotext
    assert "K-LoRA" not in host.run(plain()).infotext


# Forge's and Neo's API answers 500 to every `infotext`, a plain image's too: it tests values against generic types
INFOTEXT = pytest.mark.hosts("a1111", "reforge", "classic")
VARIANTS = {
    "defaults": {},
    "settings": SETTINGS,
    "star": {"scale": "s*", "k": 7, "gamma": 0.9},
    "weights": {"content_te_weight": 0.5, "style_weight": 1.2, "engine": "bypass"},
    "random": {"method": "random"},
}


@pytest.mark.hosts("a1111")
@pytest.mark.parametrize("variant", VARIANTS)
def test_infotext_sent_back_gives_the_same_image(host: Host, sd15: Model, variant: str):
    made = host.run(klora(sd15.uneven, VARIANTS[variant]))
    assert difference(made.image, host.image(plain())) > FAR
    assert same(host.image({"infotext": made.infotext}), made.image)


@INFOTEXT
def test_infotext_with_tags_sent_back(host: Host, sd15: Model):
    job = klora(sd15.uneven) | {"prompt": PLAIN["prompt"] + tag(sd15.uneven.content, 0.5, 0.6)}
    made = host.run(job)
    assert same(host.image({"infotext": made.infotext}), made.image)


@INFOTEXT
def test_infotext_of_a_plain_image_switches_nothing_on(host: Host, sd15: Model):
    made = host.run(plain())
    assert same(host.image({"infotext": made.infotext}), made.image)


def test_show_map_adds_an_image(host: Host, sd15: Model):
    without = host.run(klora(sd15.uneven))
    with_map = host.run(klora(sd15.uneven, {"show_map": True}))
    assert len(with_map.images) == len(without.images) + 1
    assert same(with_map.image, without.image)


def axis(host: Host, label: str, values: list[str], dropdown: bool = False) -> list:
    """The plot's positional arguments with one axis and the cells among the images; hosts differ in what comes behind."""
    args = script_info(host, "x/y/z plot")["args"]
    choices = args[0]["choices"]
    kind = [choices.index(label), "" if dropdown else ",".join(values), values if dropdown else []]
    nothing = [choices.index("Nothing"), "", []]
    wanted = {"Draw legend": False, "Include Sub Images": True}
    return [*kind, *nothing, *nothing, *(wanted.get(arg["label"], arg["value"]) for arg in args[9:])]


def plot(host: Host, job: dict, *args: object, **kw: object) -> list:
    grid, *cells = host.run(job | {"script_name": "x/y/z plot", "script_args": axis(host, *args, **kw)}).images
    assert grid.size == sum(c.size for c in cells)  # in one row, or as near to a square as may be
    return cells


def test_plot_over_alpha(host: Host, sd15: Model):
    values = [0.3, 1.5, 4.0]
    cells = plot(host, klora(sd15.uneven, {"beta": 0.4}), "K-LoRA alpha", [str(v) for v in values])
    assert len(cells) == len(values)
    for value, cell in zip(values, cells, strict=True):
        assert same(cell, host.image(klora(sd15.uneven, {"beta": 0.4, "alpha": value})))
    assert difference(cells[0], cells[1]) > FAR
    assert difference(cells[1], cells[2]) > FAR


def test_plot_over_methods(host: Host, sd15: Model):
    values = ["klora", "direct", "fixed", "random", "topk", "no-gamma", "switch", "content", "style"]
    values += ["est", "np", "average", "ties"]  # blora is for SDXL alone
    cells = plot(host, klora(sd15.uneven), "K-LoRA method", values, dropdown=True)
    for value, cell in zip(values, cells, strict=True):
        assert same(cell, host.image(klora(sd15.uneven, {"method": value})))
    assert difference(cells[0], cells[1]) > FAR


def test_every_setting_is_an_axis(host: Host):
    choices = script_info(host, "x/y/z plot")["args"][0]["choices"]
    assert {f"K-LoRA {name}" for name in POSITIONS if name not in ("enabled", "show_map")} <= set(choices)
    assert len(choices) == len(set(choices))


def test_plot_leaves_nothing_on(host: Host, sd15: Model):
    before = host.image(plain())
    plot(host, klora(sd15.uneven), "K-LoRA beta", ["0.2", "0.9"])
    assert same(host.image(plain()), before)
    assert same(host.image(plain() | scripts(TITLE, {"enabled": False})), before)
