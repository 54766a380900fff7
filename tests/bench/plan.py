"""Planning a full-size SDXL pair: 560 attention layers, ranks 32 and 64, at random; against the bare products."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from klora_lib.lora.file import lora_file
from klora_lib.numerics import exact_math
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

CPU = torch.device("cpu")
CONTEXT = 2048
# SDXL's attention: (block, attentions, transformer blocks each, width)
LEVELS = (
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("mid_block", 1, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
)


def shapes() -> dict[str, tuple[int, int]]:
    """Layer → [out, in] of all 560."""
    out = {}
    for level, attentions, depth, width in LEVELS:
        for a in range(attentions):
            for b in range(depth):
                block = f"{level}.attentions.{a}.transformer_blocks.{b}"
                for attn, wide in (("attn1", width), ("attn2", CONTEXT)):
                    out |= {f"{block}.{attn}.{x}": (width, width) for x in ("to_q", "to_out.0")}
                    out |= {f"{block}.{attn}.{x}": (width, wide) for x in ("to_k", "to_v")}
    return out


def random_pair(ranks: tuple[int, int] = (32, 64)) -> Pair:
    files = []
    for seed, (name, rank) in enumerate(zip(("subject", "style"), ranks)):
        g = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, (rows, columns) in shapes().items():
            tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=g).half()
            tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=g).half()
        files.append(lora_file(tensors, name, digest=name))
    return make_pair(*files)


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(runs: int = 5) -> dict[str, float]:
    """Medians: ``bare`` and ``scored`` seconds in turn, their ratio pair by pair, and ``cached`` planning seconds."""
    pair = random_pair()
    assert len(pair.units) == 560

    def bare() -> None:
        with exact_math(CPU):
            for unit in pair.units:
                for delta in (unit.content, unit.style):
                    up, down, _ = delta.factors()
                    up.float() @ down.float()

    bare()
    rounds = [(seconds(bare), seconds(lambda: score_units(pair.units, "auto", CPU))) for _ in range(runs)]
    library = Library()
    library.score(pair, "auto", CPU)

    def again() -> None:
        make_plan(pair, library.score(pair, "auto", CPU), Settings(), 30).table(30)

    cached = [seconds(again) for _ in range(runs)]
    return {
        "bare": median(b for b, _ in rounds),
        "scored": median(s for _, s in rounds),
        "ratio": median(s / b for b, s in rounds),
        "cached": median(cached),
    }
