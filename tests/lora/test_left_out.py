"""Theorem: whatever of a file is not applied is told, and a file of which most is not is refused, by its right name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from klora_lib.cli.main import main
from klora_lib.errors import LoraFileError
from klora_lib.lora.file import lora_file, read_lora

Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def known(n: int) -> dict[str, Tensor]:
    """``n`` modules, two tensors each."""
    return {f"{Q.replace('blocks.0.attn1', f'blocks.{i}.attn1')}.lora_{x}.weight": torch.ones(2, 2)
            for i in range(n) for x in "AB"}  # fmt: skip


def strange(n: int) -> dict[str, Tensor]:
    return {f"lora_te4_model_layers_{i}_mlp.lora_up.weight": torch.ones(2, 2) for i in range(n)}


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(LoraFileError) as caught:
        lora_file(tensors, "x")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- told, or refused ---


@given(st.integers(1, 5), st.integers(0, 20))
def test_every_tensor_is_used_told_or_the_file_refused(modules: int, others: int) -> None:
    tensors = {**known(modules), **strange(others)}
    if others > 2 * modules:
        said = refusal(tensors)
        assert f"{others} of its {len(tensors)} tensors" in said and "lora_te4_model_layers_0_mlp.lora_up.weight" in said
        return
    file = lora_file(tensors, "x")
    assert len(file.modules) == modules and set(file.unknown) == set(strange(others))
    if not others:
        assert file.notes == []
        return
    (note,) = file.notes
    are = "1 tensor of 'x' is" if others == 1 else f"{others} tensors of 'x' are"
    assert note == f"{are} of no LoRA dialect that is read, lora_te4_model_layers_0_mlp.lora_up.weight among them"


def pair_of_files(folder: Path, others: int) -> list[str]:
    for role, scale in (("content", 1.0), ("style", 1.5)):
        save_file({k: t * scale for k, t in known(2).items()} | strange(others if role == "content" else 0),
                  folder / f"{role}.safetensors")  # fmt: skip
    return [str(folder / f"{role}.safetensors") for role in ("content", "style")]


def planned(paths: list[str], capsys: Any) -> tuple[dict[str, Any], str]:
    assert main(["plan", *paths]) == 0
    heard = capsys.readouterr()
    return json.loads(heard.out), heard.err


def test_plan_tells_on_standard_error_and_in_its_json(tmp_path: Path, capsys: Any) -> None:
    told, err = planned(pair_of_files(tmp_path, 3), capsys)
    note = lora_file({**known(2), **strange(3)}, "content").notes
    assert told.pop("notes") == note and err == f"note: {note[0]}\n"
    silent, err = planned(pair_of_files(tmp_path, 0), capsys)
    assert (silent, err) == (told, "")
    assert list(silent) == ["gamma", "steps", "layers"]


# --- by its right name ---


def test_a_checkpoint_is_a_checkpoint() -> None:
    unet = {f"model.diffusion_model.input_blocks.{i}.0.in_layers.2.weight": torch.ones(2, 2, 3, 3) for i in range(1, 4)}
    rest = {"cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": torch.ones(2, 2),
            "first_stage_model.decoder.conv_in.bias": torch.ones(2)}  # fmt: skip
    said = "is a checkpoint or another model's weights, not a LoRA"
    assert refusal({**unet, **rest}) == (
        f"'x' {said}: down_blocks.0.resnets.0.conv1.weight is one of its 5 tensors"
    )
    for tensors in (
        rest,
        {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2), "double_blocks.0.img_attn.qkv.bias": torch.ones(2)},
        {"transformer_blocks.0.attn.to_q.weight": torch.ones(2, 2)},
        {"control_model.input_blocks.0.0.weight": torch.ones(2, 2)},
        {"decoder.conv_in.weight": torch.ones(2, 2), "decoder.conv_in.bias": torch.ones(2)},
    ):
        assert said in refusal(tensors)


def test_a_lora_with_a_few_weights_of_the_model_is_refused_for_these() -> None:
    said = refusal({**known(2), "unet.conv_in.weight": torch.ones(2, 2)})
    assert said == "'x' cannot be used: conv_in is of a type that is not read (weight)"


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("folder", "folder", "is a folder: choose the .safetensors file in it"),
        ("v1.5", "folder", "is a folder: choose the .safetensors file in it"),
        ("author/model", None, "does not exist on this machine: a model on a hub has to be downloaded first"),
        ("author/model-v1.5", None, "does not exist on this machine: a model on a hub has to be downloaded first"),
        ("nothing", None, "does not exist"),
        ("0a1b2c", "file", "is a file without an extension, and only .safetensors is read"),
        ("lora.gguf", "file", "is a .gguf file, and only .safetensors is read"),
        ("lora.ckpt", "file", "is a .ckpt file, which may run code when opened: convert it to .safetensors"),
    ],
)
def test_what_is_no_safetensors_file(
    name: str, there: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there == "folder":
        os.mkdir(name)
    elif there == "file":
        Path(name).write_bytes(b"1")
    with pytest.raises(LoraFileError) as caught:
        read_lora(name, "x")
    assert str(caught.value) == f"'x' {said}"
