"""What a request may hold: everything wrong is an HTTP 422 that names the field and the fact, and draws nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import files
from .checks import FAR, same
from .host import Answer, Host, difference, encode
from .jobs import PLAIN, Model, Pair, klora, plain, tag

WRONG_SETTINGS = [
    ({"colour": 1}, ["colour"]),
    ({"alpha": "abc"}, ["alpha", "abc"]),
    ({"alpha": math.nan}, ["alpha", "nan"]),
    ({"alpha": "inf"}, ["alpha", "inf"]),
    ({"alpha": math.inf}, ["alpha", "inf"]),
    ({"alpha": -1}, ["alpha", "-1"]),
    ({"alpha": [1.5]}, ["alpha", "1.5"]),
    ({"alpha": 0, "scale": "s*"}, ["alpha", "s*"]),
    ({"beta": "x"}, ["beta", "x"]),
    ({"beta": math.nan}, ["beta", "nan"]),
    ({"beta": -0.5}, ["beta", "-0.5"]),
    ({"gamma": 0}, ["gamma", "0"]),
    ({"gamma": -2}, ["gamma", "-2"]),
    ({"gamma": "foo"}, ["gamma", "foo"]),
    ({"gamma": math.nan}, ["gamma", "nan"]),
    ({"k": 0}, ["k", "0"]),
    ({"k": "x"}, ["k", "x"]),
    ({"k": 2.5}, ["k", "2.5"]),
    ({"method": "foo"}, ["method", "foo"]),
    ({"engine": "foo"}, ["engine", "foo"]),
    ({"layers": "foo"}, ["layers", "foo"]),
    ({"progress": "foo"}, ["progress", "foo"]),
    ({"scale": "t"}, ["scale", "t"]),
    ({"content_weight": "much"}, ["content_weight", "much"]),
    ({"style_te_weight": math.inf}, ["style_te_weight", "inf"]),
    ({"enabled": "perhaps"}, ["enabled", "perhaps"]),
    ({"alpha": "abc", "k": 0, "method": "foo"}, ["alpha", "abc", "k", "method", "foo"]),
    ({"content": "nope"}, ["content", "nope"]),
    ({"style": "nope"}, ["style", "nope"]),
    ({"content": "nope", "style": "nor this"}, ["content", "nope", "style", "nor this"]),
    ({"style": ""}, ["style"]),
    ({"content": ""}, ["content"]),
    ({"content": None}, ["content"]),
    ({"content": 7}, ["content", "7"]),
    ({"content": "../lora/subject"}, ["content", "../lora/subject"]),
    ({"content": "subject.safetensors"}, ["content", "subject.safetensors"]),
]
Maker = Callable[[Path, files.Tensors], str]


def tensor_maker(change: Callable[[files.Tensors], files.Tensors]) -> Maker:
    return lambda path, tensors: files.write(path, change(tensors))


def truncated(path: Path, tensors: files.Tensors) -> str:
    files.write(path, tensors)
    raw = path.read_bytes()
    return files.write_bytes(path, raw[: len(raw) // 2])


WRONG_FILES: dict[str, Maker] = {
    "truncated": truncated,
    "header_only": lambda path, tensors: files.write_bytes(path, (80).to_bytes(8, "little") + b'{"a":'),
    "random": lambda path, tensors: files.write_bytes(path, random.Random(0).randbytes(5000)),
    "empty": lambda path, tensors: files.write_bytes(path, b""),
    "nan": tensor_maker(lambda t: files.filled(t, math.nan)),
    "inf": tensor_maker(lambda t: files.filled(t, math.inf)),
    "rank_mismatch": tensor_maker(files.rank_mismatch),
    "too_wide": tensor_maker(files.too_wide),
    "text_only": tensor_maker(files.text_only),
    "all_zero": tensor_maker(files.zero),
    "no_tensor": tensor_maker(lambda t: {}),
    "not_a_lora": tensor_maker(lambda t: {"model.weight": t[min(t)]}),
}
# whether these fit shows only beside the partner or the model, so the text may name the file instead of the field
FAULTS_OF_A_PAIR = ("too_wide", "all_zero")


@pytest.fixture(scope="module")
def wrong_files(host: Host) -> dict[str, str]:
    """name of the fault -> LoRA name"""
    tensors = files.read(host.lora / f"{host.sd15.full.content}.safetensors")
    names = {fault: make(host.lora / f"wrong_{fault}.safetensors", tensors) for fault, make in WRONG_FILES.items()}
    for half in (0, 1):
        names[f"half{half}"] = files.write(host.lora / f"half{half}.safetensors", files.half_of_layers(tensors, half))
    host.refresh_loras()
    return names


@pytest.fixture
def unharmed(host: Host, sd15: Model) -> Iterator[None]:
    """The next plain image is the one before, and no hook is left."""
    before, hooks = host.known_image(plain()), host.state()["hooks"]
    yield
    assert same(host.image(plain()), before)
    assert host.state()["hooks"] == hooks


def assert_refused(answer: Answer, words: list[str]) -> None:
    assert answer.status == 422, answer.text[:500]
    assert isinstance(answer.body, dict), answer.text[:500]
    text = answer.text.lower()
    missing = [word for word in words if word.lower() not in text]
    assert not missing, f"{missing} not in {answer.text[:500]}"
    assert "images" not in answer.body


def test_wrong_settings(host: Host, sd15: Model, unharmed, subtests: pytest.Subtests):
    for settings, words in WRONG_SETTINGS:
        with subtests.test(settings=str(settings)):
            assert_refused(host.ask("/sdapi/v1/txt2img", klora(sd15.attention, settings)), words)


def test_absolute_path_is_no_name(host: Host, sd15: Model, unharmed):
    path = str(host.lora / f"{host.sd15.attention.content}.safetensors")
    assert_refused(host.ask("/sdapi/v1/txt2img", klora(sd15.attention, {"content": path})), ["content"])


def test_img2img_refuses_as_well(host: Host, sd15: Model, unharmed):
    job = klora(sd15.attention, {"alpha": "abc"}, init_images=[encode(host.known_image(plain()))])
    assert_refused(host.ask("/sdapi/v1/img2img", job), ["alpha", "abc"])


@pytest.mark.parametrize("role", ["content", "style"])
def test_wrong_files(host: Host, sd15: Model, unharmed, wrong_files, role: str, subtests: pytest.Subtests):
    for fault in WRONG_FILES:
        name = wrong_files[fault]
        words = [name] if fault in FAULTS_OF_A_PAIR else [name, role]
        with subtests.test(fault=fault):
            assert_refused(host.ask("/sdapi/v1/txt2img", klora(sd15.full, {role: name})), words)


def test_file_gone_after_listing(host: Host, sd15: Model, unharmed):
    path = host.lora / "soon_gone.safetensors"
    files.write(path, files.read(host.lora / f"{host.sd15.attention.content}.safetensors"))
    host.refresh_loras()
    path.unlink()
    answer = host.ask("/sdapi/v1/txt2img", klora(sd15.attention, {"content": "soon_gone"}))
    assert_refused(answer, ["content", "soon_gone"])


def test_no_common_layer(host: Host, sd15: Model, unharmed, wrong_files):
    """Each layer has the one LoRA that touches it, so that adding both is the same."""
    pair = Pair(wrong_files["half0"], wrong_files["half1"])
    drawn = host.run(klora(pair))
    assert "K-LoRA common layers: none" in drawn.infotext
    assert difference(drawn.image, host.image(klora(pair, {"method": "direct"}))) <= 1
    assert difference(drawn.image, host.image(plain())) > FAR


def test_no_common_attention_layer(host: Host, sd15: Model, unharmed):
    tensors = files.read(host.lora / f"{sd15.full.content}.safetensors")
    other = [n for n in files.modules(tensors, files.DENOISER) if not n.endswith(files.ATTENTION)]
    name = files.write(host.lora / "no_attention.safetensors", files.only(tensors, other))
    host.refresh_loras()
    pair = Pair(name, sd15.full.style)
    assert_refused(host.ask("/sdapi/v1/txt2img", klora(pair, {"layers": "attention"})), ["layers", "attention"])
    assert difference(host.image(klora(pair)), host.image(plain())) > FAR


@pytest.mark.parametrize("which", ["attention", "full"])
def test_pair_of_another_family(host: Host, model: Model, which: str):
    pair = getattr(host.models["sdxl" if model.name == "sd15" else "sd15"], which)
    before = host.known_image(plain())
    assert_refused(host.ask("/sdapi/v1/txt2img", klora(pair)), [pair.content, pair.style])
    assert same(host.image(plain()), before)


@pytest.mark.parametrize("role", ["content", "style"])
def test_one_lora_of_another_family(host: Host, sd15: Model, unharmed, role: str):
    name = getattr(host.sdxl.attention, role)
    assert_refused(host.ask("/sdapi/v1/txt2img", klora(sd15.attention, {role: name})), [name])


# files that are right


@pytest.mark.parametrize("opening", [b"\x80", b"PK"], ids=["pickle", "zip"])
def test_sound_file_that_opens_like_a_pickle(host: Host, sd15: Model, opening: bytes):
    tensors = files.read(host.lora / f"{sd15.full.content}.safetensors")
    name = files.write_opening_with(host.lora / f"opens_with_{opening.hex()}.safetensors", tensors, opening)
    host.refresh_loras()
    assert same(host.image(klora(Pair(name, sd15.full.style))), host.image(klora(sd15.full)))


def dialect(host: Host, name: str, change: Callable[[files.Tensors], files.Tensors]) -> str:
    tensors = files.read(host.lora / f"{name}.safetensors")
    written = files.write(host.lora / f"{change.__name__}_{name}.safetensors", change(tensors))
    host.refresh_loras()
    return written


def test_peft_dialect(host: Host, model: Model):
    """Text encoder parts included, which the host itself does not read in this dialect."""
    pair = Pair(*(dialect(host, name, files.peft) for name in (model.full.content, model.full.style)))
    kohya = host.image(klora(model.full))
    assert difference(host.image(klora(pair)), kohya) <= 1
    assert difference(kohya, host.known_image(plain())) > FAR
    assert difference(kohya, host.image(klora(model.full, {"content_te_weight": 0}))) > FAR


def test_pair_in_two_dialects(host: Host, sd15: Model):
    pair = Pair(sd15.full.content, dialect(host, sd15.full.style, files.peft))
    assert difference(host.image(klora(pair)), host.image(klora(sd15.full))) <= 1


def test_dreambooth_dialect(host: Host, model: Model):
    pair = Pair(*(dialect(host, name, files.dreambooth) for name in (model.attention.content, model.attention.style)))
    kohya = host.image(klora(model.attention))
    assert difference(host.image(klora(pair)), kohya) <= 1
    assert difference(kohya, host.known_image(plain())) > FAR


def test_tag_of_a_dialect_the_host_cannot_read(host: Host, sd15: Model):
    """The host finds nothing in this file; chosen as content, its tag still supplies the weight."""
    name = dialect(host, sd15.full.content, files.peft)
    tagged = klora(Pair(name, sd15.full.style)) | {"prompt": PLAIN["prompt"] + tag(name, 0.5, 0.5)}
    expected = host.image(klora(sd15.full, {"content_weight": 0.5}))
    assert difference(host.image(tagged), expected) <= 1


def test_overwritten_file_is_read_again(host: Host, sd15: Model):
    path = host.lora / "overwritten.safetensors"
    images = []
    for name in (sd15.attention.content, sd15.full.content):
        files.write(path, files.read(host.lora / f"{name}.safetensors"))
        host.refresh_loras()
        images.append(host.image(klora(Pair("overwritten", sd15.full.style))))
        assert same(images[-1], host.image(klora(Pair(name, sd15.full.style))))
    assert difference(*images) > FAR
