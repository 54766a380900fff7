"""Rows of a module: taken apart and stacked again, every type adds what it added whole."""

from __future__ import annotations

import pytest
import torch

from klora_lib.errors import PairError
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import Delta, fuse_parts
from klora_lib.lora.rows import cut_rows

OUT, IN, EDGES = 12, 5, (0, 4, 8, 12)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LORA = {"lora_up.weight": rand(OUT, 2), "lora_down.weight": rand(2, IN), "alpha": torch.tensor(1.0)}
KINDS = {
    "LoRA": LORA,
    "with a bias": LORA | {"diff_b": rand(OUT)},
    "LoHa": {"hada_w1_a": rand(OUT, 2), "hada_w1_b": rand(2, IN), "hada_w2_a": rand(OUT, 3), "hada_w2_b": rand(3, IN)},
    "LoKr": {"lokr_w1": rand(3, 1), "lokr_w2": rand(4, IN)},
    "GLoRA": {"a1.weight": rand(IN, 2), "a2.weight": rand(2, IN), "b1.weight": rand(OUT, 2), "b2.weight": rand(2, IN)},
    "full": {"diff": rand(OUT, IN)},
    "bias": {"diff_b": rand(OUT)},
    "DoRA": LORA | {"dora_scale": rand(OUT, 1)},
}


def parts(delta: Delta) -> list[Delta | None]:
    return [cut_rows(delta, first, last) for first, last in zip(EDGES, EDGES[1:])]


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_they_are_the_whole(kind: str) -> None:
    whole = build_delta("a layer", KINDS[kind])
    base = rand(OUT, 1 if kind == "bias" else IN)
    pieces = parts(whole)
    assert torch.allclose(whole.update(base.clone()), together(pieces, base), atol=1e-6)
    assert all(p is not None and p.shape[0] == 4 for p in pieces)
    if whole.bias is not None:
        assert torch.equal(torch.cat([p.bias for p in pieces if p is not None and p.bias is not None]), whole.bias)
    if (low_rank := whole.factors()) is not None:
        assert all(p is not None and p.factors() is not None for p in pieces)
        assert torch.equal(torch.cat([p.factors()[0] for p in pieces]), low_rank[0])  # type: ignore[union-attr,index]


def together(pieces: list[Delta | None], base: torch.Tensor) -> torch.Tensor:
    slabs = [base[first:last] for first, last in zip(EDGES, EDGES[1:])]
    return torch.cat([torch.zeros_like(b) if p is None else p.update(b.clone()) for p, b in zip(pieces, slabs)])


def test_members_come_back_as_they_went_in() -> None:
    q, v = (build_delta("q", {"diff": rand(4, IN)}), build_delta("v", {"diff": rand(4, IN) * 2}))
    assert parts(fuse_parts([q, None, v], [4, 4, 4])) == [q, None, v]
    with pytest.raises(PairError, match="rows 0 to 8"):
        cut_rows(fuse_parts([q, None, v], [4, 4, 4]), 0, 8)


def test_a_part_of_a_member() -> None:
    wide = build_delta("qk", {"diff": rand(8, IN)})
    whole = fuse_parts([wide, None], [8, 4])
    assert torch.equal(cut_rows(whole, 4, 8).dense(), wide.dense()[4:])  # type: ignore[union-attr]


def test_what_needs_the_other_rows_is_refused() -> None:
    with pytest.raises(PairError, match="DoRA by input channel"):
        cut_rows(build_delta("a layer", LORA | {"dora_scale": rand(1, IN)}), 0, 4)
