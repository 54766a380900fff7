"""What a job tells the user of its files, beside the image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klora_lib.lora.keys import parse_key

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from .jobs import job


def draw_with(host: FakeHost, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    """The p of a job for which the file of one LoRA is changed; the tests share the file."""
    path = Path(host.networks.available_networks[name].filename)
    before = path.read_bytes()
    try:
        save_file(change(load_file(path)), path)
        p = job(host)
        process_images(p)
    finally:
        path.write_bytes(before)
    return p


def test_what_a_file_leaves_out_is_in_a_comment_and_in_the_infotext(host: FakeHost) -> None:
    key = "lora_te4_model_layers_0_mlp.lora_up.weight"
    p = draw_with(host, "subject", lambda tensors: {**tensors, key: torch.ones(2, 2)})
    note = f"K-LoRA: 1 tensor of 'subject' is of no LoRA dialect that is read, {key} among them"
    assert list(p.comments) == [note]
    assert p.extra_generation_params["K-LoRA unread tensors"] == f"1 of content ({key})"


def test_what_a_file_of_peft_does_not_tell_is_in_a_comment(host: FakeHost) -> None:
    words = {"lora_up.weight": "lora_B", "lora_down.weight": "lora_A"}

    def name_as_peft(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        keys = {raw: parse_key(raw) for raw in tensors}
        known = {raw: key for raw, key in keys.items() if key is not None and key.part in words}
        return {f"base_model.model.{key.layer}.{words[key.part]}.weight": tensors[raw] for raw, key in known.items()}

    p = draw_with(host, "style", name_as_peft)
    told = "'style' was saved by PEFT, and no adapter_config.json that tells its strength is beside it"
    assert list(p.comments) == [f"K-LoRA: {told}: it acts with alpha = rank"]
    assert "K-LoRA unread tensors" not in p.extra_generation_params
