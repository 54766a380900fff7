"""Theorems: LoHa, LoKr and GLoRA are their definitions, written out slowly in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from torch import Tensor

from klora_lib.lora.build import build_delta

from .test_deltas import F64, LAYER, check_verbs, close, few, rand, sizes, slow_cp, slow_product


def slow_kron(one: Tensor, two: Tensor) -> Tensor:
    """[a, c] ⊗ [b, d, k] -> [a·b, c·d·k]: one number of the first scales the whole second."""
    two = two.flatten(2) if two.dim() > 2 else two.unsqueeze(2)
    (a, c), (b, d, k) = one.shape, two.shape
    out = torch.zeros(a * b, c * d, k, dtype=F64)
    for i, j, m, n in itertools.product(range(a), range(c), range(b), range(d)):
        out[i * b + m, j * d + n] = float(one[i, j]) * two[m, n].to(F64)
    return out.flatten(1)


@few
@given(out=sizes, inner=sizes, rank=sizes)
def test_loha(out: int, inner: int, rank: int) -> None:
    a1, b1, a2, b2 = rand(out, rank), rand(rank, inner), rand(out, rank, seed=1), rand(rank, inner, seed=2)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(2.0)}
    delta = build_delta(LAYER, parts)
    check_verbs(delta, 2.0 / rank * slow_product(a1, b1) * slow_product(a2, b2), (out, inner))
    assert (delta.rank, delta.factors()) == (rank, None)


def test_loha_with_cores() -> None:
    a1, b1, a2, b2 = rand(2, 5), rand(2, 4), rand(2, 5, seed=1), rand(2, 4, seed=2)  # a: [rank, out]
    t1, t2 = rand(2, 2, 3, 3), rand(2, 2, 3, 3, seed=1)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "hada_t1": t1, "hada_t2": t2}
    expected = slow_cp(a1.T, t1, b1) * slow_cp(a2.T, t2, b2)
    check_verbs(build_delta(LAYER, parts), expected, (5, 4, 3, 3))


def test_lokr_of_full_matrices_has_scale_one() -> None:
    w1, w2 = rand(2, 3), rand(4, 2, 3, 3)
    delta = build_delta(LAYER, {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(16.0)})
    check_verbs(delta, slow_kron(w1, w2), (8, 6, 3, 3))
    assert delta.rank == 8  # rank(A⊗B) = rank(A)·rank(B): 2·4 here


@few
@given(a=sizes, c=sizes, b=sizes, d=sizes, rank=sizes)
def test_lokr_factored(a: int, c: int, b: int, d: int, rank: int) -> None:
    w1, w1a, w1b, w2a, w2b = rand(a, c), rand(a, rank), rand(rank, c), rand(b, rank), rand(rank, d)
    alpha = torch.tensor(3.0)
    one = build_delta(LAYER, {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "alpha": alpha})
    check_verbs(one, 3.0 / rank * slow_kron(w1, slow_product(w2a, w2b)), (a * b, c * d))
    both = build_delta(LAYER, {"lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2_a": w2a, "lokr_w2_b": w2b, "alpha": alpha})
    check_verbs(both, 3.0 / rank * slow_kron(slow_product(w1a, w1b), slow_product(w2a, w2b)), (a * b, c * d))
    assert one.rank == both.rank == rank


def test_lokr_on_convolutions() -> None:
    w1, w2a, w2b, core = rand(2, 3), rand(4, 2), rand(2, 5, 3, 3), rand(2, 2, 3, 3)
    kernel = slow_product(w2a, w2b.flatten(1)).view(4, 5, 3, 3)
    deep = build_delta(LAYER, {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b})
    check_verbs(deep, slow_kron(w1, kernel), (8, 15, 3, 3))
    flat = build_delta(LAYER, {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b.flatten(1)})
    check_verbs(flat, slow_kron(w1, kernel), (8, 15 * 9))
    parts = {"lokr_w1": w1, "lokr_w2_a": rand(2, 4), "lokr_w2_b": rand(2, 5), "lokr_t2": core}
    tucker = slow_cp(rand(2, 4).T, core, rand(2, 5)).view(4, 5, 3, 3)
    check_verbs(build_delta(LAYER, parts), slow_kron(w1, tucker), (8, 15, 3, 3))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("out", [5, 4])
def test_glora_acts_on_the_input_and_beside_the_weight(old: bool, out: int) -> None:
    w, x = rand(out, 4, seed=3), rand(4, 7)
    a_up, a_down, b_up, b_down = rand(4, 2), rand(2, 4), rand(out, 2, seed=1), rand(2, 4, seed=1)
    names = ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2")
    parts = {f"{name}.weight": t for name, t in zip(names, (a_up, a_down, b_up, b_down), strict=True)}
    delta = build_delta(LAYER, {**parts, "alpha": torch.tensor(1.0)})
    close((w + delta.update(w)) @ x, w @ (x + 0.5 * a_up @ a_down @ x) + 0.5 * b_up @ b_down @ x)
    close(delta.dense(), 0.5 * slow_product(b_up, b_down))
    assert (delta.rank, delta.factors(), delta.shape) == (2, None, (out, 4))


def test_glora_on_a_convolution() -> None:
    w, x = rand(5, 4, 3, 3), rand(1, 4, 6, 6)
    a1, a2, b1, b2 = rand(4, 2, 1, 1), rand(2, 4, 1, 1), rand(5, 2, 1, 1), rand(2, 4, 3, 3)
    delta = build_delta(LAYER, {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2})
    conv = torch.nn.functional.conv2d
    merged = w + delta.update(w.flatten(1)).view(w.shape)
    close(conv(x, merged), conv(x + conv(conv(x, a2), a1), w) + conv(conv(x, b2), b1))
