"""Two files to save from, and how to read what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from klora_lib.cli.main import main

from ..dialects import dialect_tensors
from ..pairs import random_layers

TEXT = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(6, 2),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 6)}  # fmt: skip


def write(path: Path, seed: int, metadata: Mapping[str, str] | None = None) -> str:
    save_file(dialect_tensors(random_layers(seed), "kohya-diffusers") | TEXT, path, dict(metadata or {}))
    return str(path)


def run(*args: str) -> int:
    return main(["bake", *args])


def read_header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
