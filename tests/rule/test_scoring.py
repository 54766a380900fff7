"""Theorems: a Top-K sum is what a full sort gives; the scores are the paper's sums."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.lora.deltas import Dora, Full, Fused, Lora
from klora_lib.rule import largest, scoring
from klora_lib.rule.largest import (
    SAMPLE,
    Largest,
    LargestInHost,
    LargestOnDevice,
    choose_block,
    cut_blocks,
    guess_least,
    sum_topk,
)
from klora_lib.rule.pairing import Unit
from klora_lib.rule.scoring import choose_k, score_units

from ..pairs import SHAPES, Layers, as_pair, dense, random_layers

CPU = torch.device("cpu")


def by_sorting(x: Tensor, k: int) -> float:
    return float(x.flatten().sort(descending=True).values[:k].sum())


# --- topk_sum ---


@given(
    n=st.integers(1, 3000),
    k=st.integers(1, 3100),
    values=st.sampled_from([1, 2, 3, 50, 10**6]),
    seed=st.integers(0, 2**16),
)
def test_topk_sum_is_that_of_a_full_sort(n: int, k: int, values: int, seed: int) -> None:
    """Whole numbers sum exactly; few distinct ones make ties everywhere."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(values, (n,), generator=g).double()
    assert float(sum_topk(x, k)) == by_sorting(x, k)


@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=12), k=st.integers(1, 14))
def test_topk_sum_of_tiny_tensors(values: list[int], k: int) -> None:
    assert float(sum_topk(torch.tensor(values, dtype=torch.float32), k)) == sum(sorted(values)[::-1][:k])


@pytest.mark.parametrize("k", [1, 2, 7, 64, 1000, 4095, 4096, 5000])
@pytest.mark.parametrize("place", ["first", "last", "together", "spread"])
def test_topk_sum_wherever_the_largest_are(k: int, place: str) -> None:
    x = torch.zeros(4096)
    big = torch.arange(1, 65, dtype=torch.float32)
    if place == "first":
        x[:64] = big
    elif place == "last":
        x[-64:] = big
    elif place == "together":
        x[1000:1064] = big
    else:
        x[::64] = big
    assert float(sum_topk(x, k)) == by_sorting(x, k)


def test_topk_sum_in_fp32_at_the_size_of_a_real_layer() -> None:
    x = torch.randn(640, 640, generator=torch.Generator().manual_seed(0)).abs_()
    assert float(sum_topk(x, 32 * 32)) == pytest.approx(by_sorting(x.double(), 32 * 32), rel=1e-6)


def test_topk_sum_leaves_its_argument_alone() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)).abs_()
    before = x.clone()
    sum_topk(x, 5)
    assert torch.equal(x, before)


@given(
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    k=st.integers(1, 3000),
    values=st.sampled_from([1, 2, 50, 10**6]),
    sample=st.sampled_from([2, 8, 64, SAMPLE]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("kind", [LargestInHost, LargestOnDevice])
def test_the_largest_of_parts_are_the_largest_of_all(
    kind: Callable[[int], Largest], sizes: list[int], k: int, values: int, sample: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randint(values, (n,), generator=g).double() for n in sizes]
    kept = kind(k)
    with mock.patch.object(largest, "SAMPLE", sample):
        for part in parts:
            shown = part.clone()
            kept.add(shown)
            shown.fill_(1e9)  # its memory is used for the next part
    assert float(kept.sum()) == by_sorting(torch.cat(parts), k)


@pytest.mark.parametrize("before", [0, 1, 299])
@pytest.mark.parametrize("kind", [LargestInHost, LargestOnDevice])
def test_topk_sum_where_a_sample_of_the_blocks_leads_astray(kind: Callable[[int], Largest], before: int) -> None:
    """Every block in the sample has a large number, and no other block: the bound from it is too high.

    before: small numbers in an earlier part, which must not stand in for larger ones below the bound.
    """
    k, n = 300, 1 << 20
    x = torch.rand(n, generator=torch.Generator().manual_seed(0))
    size = choose_block(n, k)
    blocks, _ = cut_blocks(x, size)
    step = blocks.shape[1] // SAMPLE
    assert size > 1 and step > 1
    blocks[0, ::step][: k - 1] += torch.arange(k - 1) + 1.0
    assert guess_least(blocks.amax(0).numpy(), k) > float(x.sort(descending=True).values[k - 1])
    kept, few = kind(k), torch.full((before,), 1e-3)
    for part in (few, x) if before else (x,):
        kept.add(part)
    assert float(kept.sum()) == pytest.approx(by_sorting(torch.cat([few, x]).double(), k), rel=1e-6)


# --- K ---


def unit(content_rank: int | None, style_rank: int | None, shape: tuple[int, int] = (12, 20)) -> Unit:
    """A unit with modules of these ranks; None: that LoRA does not touch it."""
    layer = next(iter(SHAPES))
    ranks = (content_rank, style_rank)
    pair = as_pair(*(random_layers(i, {layer: shape}, rank or 1) for i, rank in enumerate(ranks)))
    (both,) = pair.units
    return Unit(layer, both.content if content_rank else None, both.style if style_rank else None)


@given(content=st.integers(1, 20), style=st.integers(1, 20))
def test_k_is_the_product_of_the_ranks_at_most_the_element_count(content: int, style: int) -> None:
    assert choose_k(unit(content, style), "auto") == min(content * style, 12 * 20)


def test_an_absent_lora_counts_as_rank_one() -> None:
    assert choose_k(unit(5, None), "auto") == choose_k(unit(None, 5), "auto") == 5


@given(k=st.integers(1, 2**53))
def test_a_given_k_is_taken_up_to_the_element_count(k: int) -> None:
    assert choose_k(unit(3, 4), k) == min(k, 12 * 20)


def test_k_follows_each_layers_own_ranks() -> None:
    one, two = list(SHAPES)[:2]
    content = {**random_layers(1, {one: (12, 12)}, rank=2), **random_layers(1, {two: (12, 12)}, rank=3)}
    style = {**random_layers(2, {one: (12, 12)}, rank=4), **random_layers(2, {two: (12, 12)}, rank=1)}
    units = as_pair(content, style).units
    assert dict(zip((u.name for u in units), score_units(units, "auto", CPU).k)) == {one: 8, two: 3}


# --- the four numbers ---


def slow(layers: Layers, layer: str, k: int) -> tuple[float, float]:
    if layer not in layers:
        return 0.0, 0.0
    size = dense(layers[layer]).abs()
    return by_sorting(size, k), float(size.sum())


@given(
    seed=st.integers(0, 2**16),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alpha=st.none() | st.floats(0.25, 8),
    k=st.just("auto") | st.integers(1, 400),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_scores_are_the_sums_of_the_dense_products(
    seed: int, ranks: tuple[int, int], alpha: float | None, k: str | int, dtype: torch.dtype
) -> None:
    """Whatever the file's type: its numbers are widened first, so fp16 is as exact as fp32."""
    shapes = list(SHAPES.items())
    content = random_layers(seed, dict(shapes[:-1]), ranks[0], alpha=alpha)
    style = random_layers(seed + 1, dict(shapes[1:]), ranks[1])
    content, style = ({n: (up.to(dtype), down.to(dtype), a) for n, (up, down, a) in x.items()} for x in (content, style))
    pair = as_pair(content, style)
    scores = score_units(pair.units, k, CPU)
    assert {u.name for u in pair.units} == set(SHAPES)
    for i, u in enumerate(pair.units):
        c, s = slow(content, u.name, scores.k[i]), slow(style, u.name, scores.k[i])
        assert [float(x[i]) for x in (scores.content_topk, scores.content_abs)] == pytest.approx(c, rel=1e-5)
        assert [float(x[i]) for x in (scores.style_topk, scores.style_abs)] == pytest.approx(s, rel=1e-5)


def test_scores_are_fp32_under_a_hosts_autocast_and_inference_mode() -> None:
    units = as_pair(random_layers(1), random_layers(2)).units
    calm = score_units(units, "auto", CPU)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        stormy = score_units(units, "auto", CPU)
    assert torch.equal(calm.content_topk, stormy.content_topk)
    assert torch.equal(calm.style_abs, stormy.style_abs)


def test_scoring_changes_neither_lora() -> None:
    pair = as_pair(random_layers(1), random_layers(2))
    before = [u.content.dense().clone() for u in pair.units if u.content]
    score_units(pair.units, "auto", CPU)
    assert all(torch.equal(b, u.content.dense()) for b, u in zip(before, pair.units) if u.content)


@pytest.mark.parametrize("part", [40, 41, 100, 1 << 20])
@pytest.mark.parametrize("kind", ["product", "dense", "fused", "dora"])
def test_scores_do_not_depend_on_the_size_of_the_parts(kind: str, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large product is made some rows at a time."""
    g = torch.Generator().manual_seed(3)
    up, down = torch.randn(30, 4, generator=g), torch.randn(4, 40, generator=g)
    lora = Lora(up, down, 0.5, (30, 40))
    delta = {
        "product": lora,
        "dense": Full(up @ down, 0.5, (30, 40)),
        "fused": Fused((None, lora, lora), (10, 30, 30)),
        "dora": Dora(lora, torch.rand(30, 1, generator=g)),
    }[kind]
    monkeypatch.setattr(scoring, "CACHED", part)
    scores = score_units([Unit("x", delta, delta)], 70, CPU)
    size = delta.dense().abs()
    assert float(scores.content_topk[0]) == pytest.approx(by_sorting(size, 70), rel=1e-6)
    assert float(scores.style_abs[0]) == pytest.approx(float(size.sum()), rel=1e-6)


def test_an_update_that_is_laid_out_in_columns_is_scored_too() -> None:
    """What an update returns has the layout of the model's weight, which a host may hold as a transposed one."""
    pair = as_pair(random_layers(1), random_layers(2))
    unit = next(u for u in pair.units if u.shared)
    assert unit.content is not None and unit.style is not None

    class Columns(Full):
        def dense(self, device: torch.device | str | None = None) -> Tensor:
            return super().dense(device).t().contiguous().t()

    turned = Columns(unit.content.dense(), 1.0, unit.content.shape)
    scores = score_units([Unit("x", turned, unit.style)], 5, CPU)
    assert float(scores.content_topk[0]) == pytest.approx(by_sorting(unit.content.dense().abs(), 5), rel=1e-6)
