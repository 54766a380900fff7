"""Writes a random pair of LoRAs, shaped like an SDXL's attention but small: ``python -m tests.make_pair CONTENT STYLE``."""

from __future__ import annotations

import sys

from .dialects import write_dialect
from .pairs import random_layers

WIDTH, CONTEXT, DEPTHS = 64, 96, {"down_blocks.1": (2, 2), "down_blocks.2": (2, 10), "mid_block": (1, 10)}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def shapes() -> dict[str, tuple[int, int]]:
    """attn1 attends to the image, attn2 to the prompt, whose embedding is wider."""
    return {
        f"{block}.attentions.{i}.transformer_blocks.{j}.attn{n}.{projection}": (
            WIDTH,
            CONTEXT if n == 2 and projection in ("to_k", "to_v") else WIDTH,
        )
        for block, (attentions, depth) in DEPTHS.items()
        for i in range(attentions)
        for j in range(depth)
        for n in (1, 2)
        for projection in PROJECTIONS
    }


def main(content: str, style: str) -> None:
    write_dialect(random_layers(1, shapes(), rank=8), "kohya-diffusers", content)
    write_dialect(random_layers(2, shapes(), rank=4), "kohya-diffusers", style)


if __name__ == "__main__":
    main(*sys.argv[1:])
