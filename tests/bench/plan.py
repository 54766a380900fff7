"""Planning a full-size SDXL pair: 560 attention layers, ranks 32 and 64, at random; against the bare products."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from statistics import median

import torch

from klora_lib.lora.file import lora_file
from klora_lib.numerics import exact_math
from klora_lib.rule.cache import Library
from klora_lib.rule.explain import explain
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

from .turns import measure_seconds

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
    return measure_seconds(act)


def measure_methods(pair: Pair, runs: int = 5) -> dict[str, float]:
    """Medians of the seconds until ``klora``, ``est`` and ``np`` know what acts, nothing of the pair being kept; what np's
    projection costs when the pair is put on a model (``projected``); and ``explain``.  Ratios are of runs side by side."""
    plans = {name: Settings(method=name) for name in ("klora", "est", "np")}

    def planned(settings: Settings) -> Plan:
        plan = make_plan(pair, Library().measure(pair, settings, CPU), settings, 30)
        plan.table(30)
        plan.acting((1.0, 1.0))
        return plan

    def project() -> None:
        with exact_math(CPU):
            for acting in by_np:
                acting.unit.content.factors()

    by_np = planned(plans["np"]).acting((1.0, 1.0))
    rows = [{name: seconds(lambda s=settings: planned(s)) for name, settings in plans.items()} for _ in range(runs)]
    return {
        **{name: median(row[name] for row in rows) for name in plans},
        "est by klora": median(row["est"] / row["klora"] for row in rows),
        "np by est": median(row["np"] / row["est"] for row in rows),
        "projected": median(seconds(project) for _ in range(runs)),
        "explained": median(seconds(lambda: explain(planned(plans["est"]), 30)) for _ in range(runs)),
    }


def measure(runs: int = 5) -> dict[str, float]:
    """Medians: ``bare`` and ``scored`` seconds in turn, their ratio pair by pair, and the seconds of planning with
    scores in memory (``cached``), and on disk, as after a new start, the files being read (``kept``)."""
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
    with tempfile.TemporaryDirectory() as folder:
        Library(kept_in=folder).score(pair, "auto", CPU)

        def restart() -> None:
            make_plan(pair, Library(kept_in=folder).score(pair, "auto", CPU), Settings(), 30).table(30)

        kept = [seconds(restart) for _ in range(runs)]
    return {
        "bare": median(b for b, _ in rounds),
        "scored": median(s for _, s in rounds),
        "ratio": median(s / b for b, s in rounds),
        "cached": median(cached),
        "kept": median(kept),
        **measure_methods(pair, runs),
    }
