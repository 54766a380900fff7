"""Theorem: a file's facts come from its header alone, are those of the file, and nothing in it makes them long or wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from klora_lib.errors import LoraFileError
from klora_lib.lora.facts import LONGEST_WORD, MOST_WORDS, Facts, read_facts, split_words

Q = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"
K = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def make_pair(layer: str, rank: int, columns: int) -> dict[str, torch.Tensor]:
    name = f"lora_unet_{layer}"
    return {
        f"{name}.lora_down.weight": torch.ones(rank, columns),
        f"{name}.lora_up.weight": torch.ones(64, rank),
        f"{name}.alpha": torch.tensor(1.0),
    }


def facts(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Facts:
    path = folder / "some.safetensors"
    save_file(tensors, path, {key.replace("__", "."): value for key, value in metadata.items()})
    return read_facts(path, "some")


@pytest.mark.parametrize(("width", "base"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL")])
def test_the_width_of_the_text_tells_the_base(tmp_path: Path, width: int, base: str) -> None:
    found = facts(tmp_path, make_pair(Q, 4, 64) | make_pair(K, 8, width), ss_base_model_version="flux1")
    assert found == Facts(base, "LoRA", (4, 8), 2, "kohya", ())


def write_header(path: Path, header: object) -> Path:
    said = json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": ["<img src=x onerror=alert(1)>", 10], "data_offsets": [0, 40]},
        {"dtype": "F32", "shape": [True, 10], "data_offsets": [0, 40]},
        {"dtype": "F32", "shape": [-1, 10], "data_offsets": [0, 40]},
        {"dtype": "F32", "shape": "44", "data_offsets": [0, 40]},
        {"dtype": ["F32"], "shape": [4, 10], "data_offsets": [0, 40]},
        {"dtype": "F32", "shape": [4, 10], "data_offsets": [0.5, 40]},
        {"dtype": "F32", "shape": [4, 10], "data_offsets": []},
        "F32",
    ],
)
def test_an_entry_that_is_none_makes_it_no_safetensors_file(tmp_path: Path, entry: object) -> None:
    path = write_header(tmp_path / "evil.safetensors", {f"lora_unet_{K}.lora_down.weight": entry})
    with pytest.raises(LoraFileError, match="not a safetensors file"):
        read_facts(path, "evil")


@pytest.mark.parametrize("metadata", [["a"], "a", 3])
def test_so_does_metadata_that_is_none(tmp_path: Path, metadata: object) -> None:
    with pytest.raises(LoraFileError, match="not a safetensors file"):
        read_facts(write_header(tmp_path / "evil.safetensors", {"__metadata__": metadata}), "evil")


@pytest.mark.parametrize("shape", [(), (768,), (4, 768, 1, 1)])
def test_a_shape_of_any_length_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    found = facts(tmp_path, {f"lora_unet_{K}.lora_down.weight": torch.ones(shape)})
    assert (found.base, found.layers) == ("SD1" if len(shape) > 1 else "a UNet", 1)


def test_without_it_the_metadata_tells(tmp_path: Path) -> None:
    found = facts(tmp_path, make_pair(Q, 4, 64), modelspec__architecture="stable-diffusion-xl-v1-base/lora")
    assert (found.base, found.trainer) == ("SDXL", "")
    assert facts(tmp_path, make_pair(Q, 4, 64)).base == "a UNet"


def test_types(tmp_path: Path) -> None:
    name = f"lora_unet_{Q}"
    dora = make_pair(Q, 4, 64) | {f"{name}.dora_scale": torch.ones(64, 1)}
    assert facts(tmp_path, dora).kind == "DoRA"
    loha = {f"{name}.hada_w{n}_{part}": torch.ones(*size) for n in (1, 2) for part, size in (("a", (64, 3)), ("b", (3, 64)))}
    found = facts(tmp_path, loha)
    assert (found.kind, found.ranks) == ("LoHa", (3, 3))


def test_words_are_the_phrase_then_the_most_frequent_tags(tmp_path: Path) -> None:
    frequency = {"10_dog": {"grass": 4, "sks dog": 9}, "5_more": {"grass": 7, "<img src=x>": 99, "": 5, "no number": "x"}}
    said = json.dumps(frequency)
    found = facts(tmp_path, make_pair(Q, 4, 64), modelspec__trigger_phrase="sks dog, (a, b:1.2)", ss_tag_frequency=said)
    assert found.words == ("sks dog", "(a, b:1.2)", "grass")


@pytest.mark.parametrize("said", ["{", "[]", '{"a": 1}', "[" * 5000, '{"a": {"b": NaN, "c": Infinity, "d": 1e400}}'])
def test_broken_metadata_is_passed_over(tmp_path: Path, said: str) -> None:
    found = facts(tmp_path, make_pair(Q, 4, 64), ss_tag_frequency=said, software=said)
    assert found.layers == 1 and found.trainer == "kohya"


def test_words_are_bounded(tmp_path: Path) -> None:
    tags = {f"{n} {'x' * (LONGEST_WORD - 5)}": n for n in range(100)} | {"y" * 1000: 1000}
    words = facts(tmp_path, make_pair(Q, 4, 64), ss_tag_frequency=json.dumps({"a": tags})).words
    assert len(words) == MOST_WORDS and max(map(len, words)) <= LONGEST_WORD


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    with pytest.raises(LoraFileError, match="cannot be opened"):
        read_facts(path, "some")
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(LoraFileError, match="'some' is not a safetensors file"):
        read_facts(path, "some")


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """A file that ends after its header has the same facts."""
    path = tmp_path / "some.safetensors"
    whole = facts(tmp_path, make_pair(Q, 4, 64))
    data = path.read_bytes()
    path.write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    assert read_facts(path, "some") == whole


def test_commas_in_brackets_do_not_split() -> None:
    assert split_words(" a, (b, c:1.2), [d, {e, f}] ,, g") == ["a", "(b, c:1.2)", "[d, {e, f}]", "g"]
