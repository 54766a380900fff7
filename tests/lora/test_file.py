"""Theorems: every dialect of one LoRA reads as the same modules; whatever cannot be used is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from klora_lib.errors import LoraFileError
from klora_lib.lora.deltas import fuse_parts
from klora_lib.lora.file import LoraFile, lora_file, read_lora
from klora_lib.lora.keys import list_members, make_natural_order

from .. import dialects
from .test_keys import flux_layers, sd3_layers, unet_layers

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TE = "text_model.encoder.layers.3.self_attn.q_proj"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(layer: str, seed: int) -> tuple[Tensor, Tensor, float | None]:
    """(up, down, alpha) of the right kind for the layer; fused rows are as many as members need."""
    if "resnets" in layer and "conv" in layer:
        return rand(6, 2, 1, 1, seed=seed), rand(2, 4, 3, 3, seed=seed), 1.0
    rows = {"to_qkv": 12, "to_added_qkv": 12, "to_qkv_mlp_proj": 20}.get(layer.rpartition(".")[2], 6)
    return rand(rows, 2, seed=seed), rand(2, 4, seed=seed), None if seed % 2 else 3.0


def layers_of(names: list[str]) -> dict[str, tuple[Tensor, Tensor, float | None]]:
    return {name: pair(name, seed) for seed, name in enumerate(names)}


def holds(file: LoraFile, layers: dialects.Layers) -> None:
    """The file has these layers and no others, and each is scale·up@down."""
    assert list(file.modules) == sorted(layers, key=make_natural_order)
    assert (dict(file.added), dict(file.text), file.unknown) == ({}, {}, ())
    for name, (up, down, alpha) in layers.items():
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        delta = file.modules[name]
        assert delta.shape == (up.shape[0], *down.shape[1:])
        torch.testing.assert_close(delta.dense(), scale * up.flatten(1) @ down.flatten(1))


UNET_AND_ATTENTION = [*dialects.UNET_DIALECTS, *dialects.ATTENTION_DIALECTS]
names_of = settings(max_examples=10, deadline=None)


@pytest.mark.parametrize("dialect", UNET_AND_ATTENTION)
@names_of
@given(names=st.lists(unet_layers().filter(lambda name: "norm" not in name), min_size=1, max_size=4, unique=True))
def test_every_unet_dialect_reads_as_the_same_modules(dialect: str, names: list[str]) -> None:
    if dialect in dialects.ATTENTION_DIALECTS:
        names = [Q, Q.replace("to_q", "to_out.0")]
    layers = layers_of(names)
    holds(lora_file(dialects.dialect_tensors(layers, dialect), "a"), layers)


@pytest.mark.parametrize("dialect", [*dialects.FLUX_DIALECTS, *dialects.SD3_DIALECTS])
@names_of
@given(data=st.data())
def test_fused_and_split_files_have_the_same_rows(dialect: str, data: st.DataObject) -> None:
    kind = flux_layers() if "flux" in dialect else sd3_layers
    layers = layers_of(data.draw(st.lists(kind, min_size=1, max_size=4, unique=True)))
    file = lora_file(dialects.dialect_tensors(layers, dialect), "a")
    if dialect not in dialects.SPLITTING:
        holds(file, layers)
        return
    holds(file, dialects.split(layers))
    for name, (up, down, alpha) in layers.items():
        if parts := [file.modules[member] for member in list_members(name)]:
            scale = 1.0 if alpha is None else alpha / 2
            whole = fuse_parts(parts, [part.shape[0] for part in parts])
            torch.testing.assert_close(whole.dense(), scale * up @ down)


def test_xlabs_names_both_streams_and_splits_the_single_blocks() -> None:
    names = ["attn.to_qkv", "attn.to_added_qkv", "attn.to_out.0", "attn.to_add_out"]
    layers = {f"transformer_blocks.0.{name}": (rand(12, 2), rand(2, 4), None) for name in names}
    holds(lora_file(dialects.dialect_tensors(layers, "xlabs-flux"), "a"), layers)
    up, down = rand(12, 2), rand(2, 4)
    single = "single_blocks.0.processor.qkv_lora"
    file = lora_file({f"{single}.up.weight": up, f"{single}.down.weight": down}, "a")
    assert list(file.modules) == [f"single_transformer_blocks.0.attn.to_{p}" for p in "kqv"]  # sorted
    for p, rows in zip("qkv", torch.split(up @ down, 4), strict=True):
        torch.testing.assert_close(file.modules[f"single_transformer_blocks.0.attn.to_{p}"].dense(), rows)


@pytest.mark.parametrize("dialect", dialects.UNET_DIALECTS)
def test_a_file_round_trips(dialect: str, tmp_path: Path) -> None:
    layers = layers_of([Q, "mid_block.resnets.1.conv2", "conv_in"])
    path = tmp_path / "sübject.safetensors"
    dialects.write_dialect(layers, dialect, path)
    file = read_lora(path)
    holds(file, layers)
    assert file.name == "sübject"
    assert file.digest == hashlib.blake2b(path.read_bytes()).hexdigest()
    assert read_lora(str(path), "other").name == "other"


def test_mappings_are_read_only() -> None:
    file = lora_file(dialects.dialect_tensors(layers_of([Q]), "peft"), "a")
    with pytest.raises(TypeError):
        file.modules["x"] = file.modules[Q]  # type: ignore[index]


def test_norms_and_lone_biases_are_added_not_chosen() -> None:
    tensors = {
        **dialects.dialect_tensors(layers_of([Q]), "kohya-diffusers"),
        "lora_unet_conv_norm_out.w_norm": rand(4),
        "lora_unet_conv_norm_out.b_norm": rand(4),
        "lora_unet_conv_in.diff_b": rand(4),
        "lora_unet_down_blocks_0_attentions_0_norm.diff": rand(4),
    }
    file = lora_file(tensors, "a")
    assert list(file.modules) == [Q]
    assert list(file.added) == ["conv_in", "conv_norm_out", "down_blocks.0.attentions.0.norm"]


# --- text encoders ---


def with_text(text: dict[str, Tensor], layers: list[str], dialect: str = "peft") -> LoraFile:
    return lora_file({**dialects.dialect_tensors(layers_of(layers), dialect), **text}, "a")


def test_kohya_text_keys_stay_as_they_are() -> None:
    text = {f"lora_te{n}_{TE.replace('.', '_')}.lora_up.weight": rand(4, 2, seed=i) for i, n in enumerate(["", 1, 2])}
    file = with_text(text, [Q], "kohya-diffusers")
    assert set(file.text) == set(text)
    assert all(file.text[key] is text[key] for key in text)
    assert not file.foreign_text


SD15 = ("down_blocks.1.attentions.0.proj_in",)
FLUX = ("transformer_blocks.0.attn.to_qkv",)
DEEP = (Q.replace("transformer_blocks.0", "transformer_blocks.1"),)


@pytest.mark.parametrize(
    ("encoder", "layers", "prefix"),
    [
        ("text_encoder", SD15, "lora_te_"),
        ("text_encoder", DEEP, "lora_te1_"),
        ("text_encoder", ("add_embedding.linear_1",), "lora_te1_"),
        ("text_encoder", FLUX, "lora_te1_"),
        ("text_encoder_2", SD15, "lora_te2_"),
        ("clip_g", SD15, "lora_te2_"),
        ("te1", SD15, "lora_te_"),
    ],
)
def test_foreign_text_gets_the_names_kohya_would_write(encoder: str, layers: tuple[str, ...], prefix: str) -> None:
    words = {"lora_A.weight": rand(2, 4), "lora_B.weight": rand(4, 2), "lora_magnitude_vector": rand(4)}
    file = with_text({f"{encoder}.{TE}.{word}": t for word, t in words.items()}, list(layers))
    module = prefix + TE.replace(".", "_")
    assert file.foreign_text
    assert {key: tuple(t.shape) for key, t in file.text.items()} == {
        f"{module}.lora_down.weight": (2, 4),
        f"{module}.lora_up.weight": (4, 2),
        f"{module}.dora_scale": (4, 1),
    }


def test_a_wide_context_or_a_second_encoder_is_sdxl() -> None:
    down = rand(2, 2048)
    tensors = {"unet." + Q.replace("attn1.to_q", "attn2.to_k") + ".lora_A.weight": down}
    tensors[next(iter(tensors)).replace("lora_A", "lora_B")] = rand(4, 2)
    for more in ({}, {f"text_encoder_2.{TE}.lora_A.weight": rand(2, 4)}):
        file = lora_file({**tensors, f"text_encoder.{TE}.lora_A.weight": rand(2, 4), **more}, "a")
        assert next(iter(file.text)).startswith("lora_te1_")


def test_t5_is_the_third_encoder_whatever_the_file_calls_it() -> None:
    key = "encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    file = with_text({f"text_encoder_2.{key}": rand(2, 4)}, list(FLUX), "kohya-flux")
    assert list(file.text) == ["lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"]


def test_embeddings_and_unknown_keys_are_left_out() -> None:
    file = with_text({"bundle_emb.cat.emb_params": rand(2, 3), "who.knows": rand(1)}, [Q])
    assert (list(file.text), file.unknown) == ([], ("who.knows",))


# --- refusals ---


def refusal(path: Path) -> str:
    with pytest.raises(LoraFileError) as caught:
        read_lora(path)
    assert str(path.parent) not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(tmp_path: Path, data: bytes, name: str = "x.safetensors") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def header(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.safetensors") == "'x' does not exist"
    (tmp_path / "folder.safetensors").mkdir()
    assert refusal(tmp_path / "folder.safetensors") == "'folder' cannot be opened (Is a directory)"
    assert refusal(written(tmp_path, b"")) == "'x' is an empty file"
    assert refusal(written(tmp_path, b"PK\3\4", "x.pt")) == (
        "'x' is a .pt file, which may run code when opened: convert it to .safetensors"
    )
    assert refusal(written(tmp_path, b"PK\3\4")) == (
        "'x' is a pickle under the name .safetensors: convert or download it again"
    )
    assert "Git LFS pointer" in refusal(written(tmp_path, b"version https://git-lfs.github.com/spec/v1\n"))


@pytest.mark.parametrize("length", [int.from_bytes(start, "little") for start in (b"\x80\x02", b"PK")])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(length: int, tmp_path: Path) -> None:
    key = "lora_unet_conv_in.diff"
    entry = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": {"a": ""}, key: entry})
    text = text.replace('"a": ""', '"a": "' + "x" * (length - len(text)) + '"')
    path = written(tmp_path, len(text).to_bytes(8, "little") + text.encode() + b"\0\0\x80\x3f")
    assert float(read_lora(path).modules["conv_in"].dense()) == 1.0


@pytest.mark.parametrize("data", [b"12", b"<html>", b"\x01" * 999, (2**40).to_bytes(8, "little") + b"{}", header([1])])
def test_bytes_without_a_header(data: bytes, tmp_path: Path) -> None:
    said = f"'x' is truncated or not a safetensors file ({len(data)} bytes, no readable header)"
    assert refusal(written(tmp_path, data)) == said


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    dialects.write_dialect(layers_of([Q]), "peft", path)
    whole = path.read_bytes()
    for end in range(1, len(whole), 7):
        path.write_bytes(whole[:end])
        assert refusal(path).startswith("'x' is truncated or ")


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    refusal(written(tmp_path_factory.getbasetemp(), data))


def test_nothing_inside(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, header({}))) == "'x' holds no tensors"
    assert refusal(written(tmp_path, header({"__metadata__": {"a": "b"}}))) == "'x' holds no tensors"
    empty = header({"unet.a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}})
    assert refusal(written(tmp_path, empty)) == "'x' holds 1 empty tensor: unet.a"
    strange = header({"unet.a": {"dtype": "F5", "shape": [1], "data_offsets": [0, 1]}}, b"1")
    assert refusal(written(tmp_path, strange)).startswith("'x' is truncated or damaged (")


def test_files_that_are_no_denoiser_lora(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"lora_te_{n}.lora_up.weight": rand(2, 2) for n in "ab"}, path)
    assert refusal(path) == "'x' has no denoiser layers, only 2 text-encoder tensors"
    save_file({"cond_stage_model.a.b": rand(2), "first_stage_model.c.d": rand(2)}, path)
    assert refusal(path) == "'x' has no key of any LoRA dialect, the first of its 2 being cond_stage_model.a.b"
    save_file({"bundle_emb.cat.emb_params": rand(2, 3)}, path)
    assert refusal(path) == "'x' has no denoiser layers, only embeddings"


def test_all_offenders_are_counted_and_three_are_named() -> None:
    tensors = {f"lora_unet_down_blocks_{i}_attentions_0_proj_in.vera_d": rand(4, 2, 2) for i in range(5)}
    tensors["lora_unet_conv_in.lora_up.weight"] = rand(4, 2)
    with pytest.raises(LoraFileError) as caught:
        lora_file(tensors, "x")
    assert str(caught.value) == (
        "'x' cannot be used: conv_in has lora_up.weight but no lora_down.weight; "
        "down_blocks.0.attentions.0.proj_in is of a type that is not read (vera_d); "
        "down_blocks.1.attentions.0.proj_in is of a type that is not read (vera_d); and 3 more"
    )


@pytest.mark.parametrize("key", ["lora_te_text_model_a.alpha", f"text_encoder.{TE}.lora_A.weight"])
def test_nan_in_a_text_encoder_is_refused(key: str) -> None:
    with pytest.raises(LoraFileError, match=rf"'a' cannot be used: {key} has NaN or infinity"):
        with_text({key: torch.tensor([float("nan")])}, [Q])
