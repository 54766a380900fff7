"""A small random ControlNet for the tiny SD1.5, which Forge builds as large as its file says."""

from __future__ import annotations

from itertools import pairwise

import torch

from .. import files

NAME = "tiny_control"
HINT = (3, 16, 16, 32, 32, 96, 96, 256)  # channels of the picture on its way to the denoiser's first level


def make_control_model(weights: files.Tensors) -> files.Tensors:
    """A ControlNet for the denoiser: its own first half, and random convolutions in and out."""
    root, generator = "model.diffusion_model.", torch.Generator().manual_seed(0)
    halves = ("time_embed.", "input_blocks.", "middle_block.")
    out = {name.removeprefix(root): w for name, w in weights.items() if name.startswith(tuple(root + h for h in halves))}
    first = out["input_blocks.0.0.weight"].shape[0]

    def convolution(name: str, outputs: int, inputs: int, size: int) -> None:
        weight = torch.randn(outputs, inputs, size, size, generator=generator)
        out[f"{name}.weight"] = (weight / (inputs * size * size) ** 0.5).to(out["input_blocks.0.0.weight"].dtype)
        out[f"{name}.bias"] = torch.zeros(outputs, dtype=out["input_blocks.0.0.weight"].dtype)

    for i, (inputs, outputs) in enumerate(pairwise((*HINT, first))):
        convolution(f"input_hint_block.{2 * i}", outputs, inputs, 3)
    blocks = 1 + max(int(name.split(".")[1]) for name in out if name.startswith("input_blocks."))
    widths = [block_width(out, i) for i in range(blocks)]
    for i, width in enumerate(widths):
        convolution(f"zero_convs.{i}.0", width, width, 1)
    convolution("middle_block_out.0", widths[-1], widths[-1], 1)
    return out


def block_width(weights: files.Tensors, block: int) -> int:
    """Output channels of one of the ``input_blocks``."""
    ends = ("0.weight", "0.op.weight", "0.out_layers.3.weight")
    return next(len(weights[name]) for end in ends if (name := f"input_blocks.{block}.{end}") in weights)
