"""Theorems: each type's ΔW is its definition, written out slowly in fp64; the verbs agree with each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.errors import LoraFileError
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import Delta, Dora, Full, Lora, Norm, fuse_parts

LAYER = "down_blocks.0.attentions.0.proj_in"
F64 = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one.to(F64), two.to(F64), rtol=1e-4, atol=1e-4)


def slow_product(up: Tensor, down: Tensor) -> Tensor:
    """Σ_r up[o, r]·down[r, i], with loops."""
    out = torch.zeros(up.shape[0], down.shape[1], dtype=F64)
    for o, i, r in itertools.product(range(up.shape[0]), range(down.shape[1]), range(up.shape[1])):
        out[o, i] += float(up[o, r]) * float(down[r, i])
    return out


def slow_cp(up: Tensor, core: Tensor, down: Tensor) -> Tensor:
    """Σ_pq core[p, q, k]·up[o, p]·down[q, i] -> [out, in·k], with loops."""
    core = core.flatten(2)
    out = torch.zeros(up.shape[0], down.shape[1], core.shape[2], dtype=F64)
    for o, i, k in itertools.product(*map(range, out.shape)):
        for p, q in itertools.product(range(core.shape[0]), range(core.shape[1])):
            out[o, i, k] += float(core[p, q, k]) * float(up[o, p]) * float(down[q, i])
    return out.flatten(1)


def check_verbs(delta: Delta, expected: Tensor, shape: tuple[int, ...]) -> None:
    """What holds for every type without a base of its own."""
    dense = delta.dense()
    close(dense, expected)
    assert delta.shape == shape
    assert dense.dtype == torch.float32
    base = rand(*dense.shape, seed=9)
    before = base.clone()
    close(delta.update(base), expected)
    assert torch.equal(base, before)
    if (factors := delta.factors()) is not None:
        up, down, scale = factors
        assert up.shape[1] == down.shape[0] == delta.rank
        close(scale * up.float() @ down.float(), expected)
    dense.fill_(7.0)  # a fresh tensor: writing to it changes nothing
    close(delta.dense(), expected)


sizes = st.integers(1, 4)
few = settings(max_examples=15, deadline=None)


@few
@given(out=sizes, inner=sizes, rank=sizes, alpha=st.none() | st.floats(0, 64, width=16))
def test_lora(out: int, inner: int, rank: int, alpha: float | None) -> None:
    up, down = rand(out, rank), rand(rank, inner, seed=1)
    parts = {"lora_up.weight": up, "lora_down.weight": down}
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    scale = 1.0 if alpha is None else alpha / rank
    delta = build_delta(LAYER, parts)
    check_verbs(delta, scale * slow_product(up, down), (out, inner))
    assert delta.rank == rank


def test_lora_on_a_convolution_is_two_convolutions() -> None:
    up, down, x = rand(5, 2, 1, 1), rand(2, 3, 3, 3), rand(1, 3, 6, 6)
    delta = build_delta(LAYER, {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)})
    conv = torch.nn.functional.conv2d
    assert delta.shape == (5, 3, 3, 3)
    close(conv(x, delta.dense().view(delta.shape)), 0.5 * conv(conv(x, down), up))


def test_lora_with_a_core_is_three_convolutions_and_still_has_two_factors() -> None:
    up, mid, down, x = rand(5, 2, 1, 1), rand(2, 2, 3, 3), rand(2, 4, 1, 1), rand(1, 4, 6, 6)
    delta = build_delta(LAYER, {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down})
    conv = torch.nn.functional.conv2d
    close(conv(x, delta.dense().view(delta.shape)), conv(conv(conv(x, down), mid), up))
    check_verbs(delta, slow_cp(up.flatten(1), mid, down.flatten(1)), (5, 4, 3, 3))
    assert delta.factors() is not None


def test_a_scale_tensor_stands_in_for_alpha() -> None:
    up, down = rand(4, 2), rand(2, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(9.0), "scale": torch.tensor([0.25])}
    check_verbs(build_delta(LAYER, parts), 0.25 * slow_product(up, down), (4, 3))


def test_biases() -> None:
    up, down, bias = rand(4, 2), rand(2, 3), rand(4)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    kohya = build_delta(LAYER, {**parts, "diff_b": bias})
    peft = build_delta(LAYER, {**parts, "lora_up.bias": bias})  # inside the low-rank branch: scaled with it
    assert kohya.bias is not None
    assert peft.bias is not None
    close(kohya.bias, bias)
    close(peft.bias, 0.5 * bias)


def test_full_and_norm() -> None:
    diff = rand(4, 3, 3, 3)
    delta = build_delta(LAYER, {"diff": diff, "diff_b": rand(4), "alpha": torch.tensor(2.0)})
    check_verbs(delta, diff.flatten(1), (4, 3, 3, 3))
    assert isinstance(delta, Full)
    assert delta.rank == 4
    for parts in ({"w_norm": rand(6), "b_norm": rand(6, seed=1)}, {"diff": rand(6), "diff_b": rand(6, seed=1)}):
        norm = build_delta("conv_norm_out", parts)
        assert isinstance(norm, Norm)
        check_verbs(norm, rand(6).view(6, 1), (6,))
        assert norm.bias is not None
        assert norm.update(rand(6, 1)).shape == (6, 1)
    alone = build_delta(LAYER, {"diff_b": rand(6)})
    assert alone.shape == (6,)
    assert alone.update(rand(6, 5)).count_nonzero() == 0


# --- DoRA ---


def test_dora_gives_every_row_the_magnitude() -> None:
    base, magnitude = rand(5, 4), rand(5).abs() + 0.1
    lora = {"lora_up.weight": rand(5, 2), "lora_down.weight": rand(2, 4)}
    for word, shape in (("dora_scale", (5, 1)), ("lora_magnitude_vector", (5,))):
        delta = build_delta(LAYER, {**lora, word: magnitude.reshape(shape)})
        assert isinstance(delta, Dora)
        merged = base + delta.update(base)
        close(merged.norm(dim=1), magnitude)
        turned = base + slow_product(*lora.values())
        close(merged, torch.stack([m * row / row.norm() for m, row in zip(magnitude, turned)]))
        close(delta.dense(), slow_product(*lora.values()))
        assert (delta.rank, delta.factors()) == (2, None)


def by_input(weight: Tensor) -> Tensor:
    """[out, in, kh, kw] -> [in, out·kh·kw]."""
    return weight.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("out", [5, 4])
def test_dora_gives_every_input_channel_the_magnitude(out: int) -> None:
    base, magnitude = rand(out, 4, 3, 3), rand(4).abs() + 0.1
    parts = {"lora_up.weight": rand(out, 2, 1, 1), "lora_down.weight": rand(2, 4, 3, 3)}
    delta = build_delta(LAYER, {**parts, "dora_scale": magnitude.view(1, 4, 1, 1)})
    merged = base + delta.update(base.flatten(1)).view(base.shape)
    close(by_input(merged).norm(dim=1), magnitude)
    direction = base + delta.dense().view(base.shape)
    close(merged / direction, (magnitude / by_input(direction).norm(dim=1)).view(1, 4, 1, 1).expand_as(base))


def test_dora_of_a_convolution_from_peft_is_by_row() -> None:
    parts = {"lora_up.weight": rand(4, 2, 1, 1), "lora_down.weight": rand(2, 4, 3, 3)}
    delta = build_delta(LAYER, {**parts, "lora_magnitude_vector": torch.ones(1, 4, 1, 1)})
    base = rand(4, 36)
    close((base + delta.update(base)).norm(dim=1), torch.ones(4))


def test_dora_keeps_a_zero_weight_zero() -> None:
    parts = {"lora_up.weight": torch.zeros(3, 1), "lora_down.weight": rand(1, 4), "dora_scale": torch.ones(3, 1)}
    assert build_delta(LAYER, parts).update(torch.zeros(3, 4)).count_nonzero() == 0


# --- fused ---


@few
@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    inner=sizes,
    kinds=st.lists(st.sampled_from(["lora", "full", "none"]), min_size=4, max_size=4),
)
def test_fused_is_stacked(rows: list[int], inner: int, kinds: list[str]) -> None:
    parts: list[Delta | None] = []
    for i, (n, kind) in enumerate(zip(rows, kinds)):
        lora = Lora(rand(n, i + 1), rand(i + 1, inner), 0.5 + i, (n, inner), rand(n) if i % 2 else None)
        parts.append({"lora": lora, "full": Full(rand(n, inner), 1.0, (n, inner)), "none": None}[kind])
    known = [part for part in parts if part is not None]
    if not known:
        with pytest.raises(LoraFileError, match="at least one"):
            fuse_parts(parts, rows)
        return
    delta = fuse_parts(parts, rows)
    stacked = [torch.zeros(n, inner) if part is None else part.dense() for part, n in zip(parts, rows)]
    check_verbs(delta, torch.cat(stacked), (sum(rows), inner))
    assert delta.rank == sum(part.rank for part in known)
    assert (delta.factors() is None) == any(isinstance(part, Full) for part in known)
    biases = [torch.zeros(n) if part is None or part.bias is None else part.bias for part, n in zip(parts, rows)]
    assert (delta.bias is None) == all(part.bias is None for part in known)
    if delta.bias is not None:
        close(delta.bias, torch.cat(biases))


def test_fused_updates_each_part_on_its_own_rows() -> None:
    inner = {"lora_up.weight": rand(3, 2), "lora_down.weight": rand(2, 4), "dora_scale": torch.ones(1, 4)}
    part, base = build_delta(LAYER, inner), rand(6, 4)
    update = fuse_parts([None, part], [3, 3]).update(base)
    assert update[:3].count_nonzero() == 0
    close(update[3:], part.update(base[3:]))


def test_parts_of_a_fused_weight_must_fit() -> None:
    part = Lora(rand(3, 2), rand(2, 4), 1.0, (3, 4))
    wider = Lora(rand(3, 2), rand(2, 5), 1.0, (3, 5))
    with pytest.raises(LoraFileError, match="3 rows where 4 are expected"):
        fuse_parts([part, part], [3, 4])
    with pytest.raises(LoraFileError, match="differ in width: 4 and 5 columns"):
        fuse_parts([part, wider], [3, 3])


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_storage_is_widened_before_it_is_multiplied(dtype: torch.dtype) -> None:
    up, down = rand(6, 3).to(dtype), rand(3, 5).to(dtype)
    lora = build_delta(LAYER, {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(3.0).to(dtype)})
    check_verbs(lora, slow_product(up.float(), down.float()), (6, 5))
    loha = build_delta(LAYER, {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down})
    check_verbs(loha, slow_product(up.float(), down.float()) ** 2, (6, 5))
    full = build_delta(LAYER, {"diff": up})
    check_verbs(full, up.float(), (6, 3))
