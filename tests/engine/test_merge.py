"""Theorem: a merged weight is base + Σ w·ΔW, rounded once; closed, every bit is as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from klora_lib.engine.merge import MemoryBudget, Merged
from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.lora.deltas import Norm
from klora_lib.numerics import exact_math

from .cases import CPU, DORAS, FLOATS, KINDS, LAYERS, RELATIVE, Duo, duo, hooks, make_layer, same, site_of, snapshot

ASKING = [*DORAS, *RELATIVE, "glora"]
FP32 = torch.finfo(torch.float32).eps


def merged(site: Site, deltas: SiteDeltas, budget: float = float("inf")) -> Merged:
    return Merged(site, deltas, CPU, MemoryBudget(budget))


def show(actor: Merged, mask: int) -> None:
    with exact_math(CPU):
        actor.show(mask)


def close(actor: Merged) -> None:
    with exact_math(CPU):
        actor.close()


def check_rounded(got: Tensor, want: Tensor, base: Tensor) -> None:
    """One rounding of the dtype, and for ΔW itself the rounding of fp32 products."""
    slack = 32 * FP32 * float((want - base.double()).abs().max())
    most = torch.finfo(got.dtype).eps / 2 * want.abs() * (2 if got.dtype == torch.float32 else 1) + slack
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    worst = ((got.double() - want).abs() - most).max()
    assert worst <= tiny, f"{float(worst)} beyond one rounding"


def check_merge(layer: str, two: Duo, dtype: torch.dtype, masks: tuple[int, ...] = (1, 2, 3)) -> None:
    module = make_layer(layer, dtype)
    site = site_of(layer, module)
    before, weight = snapshot(module), module.weight.clone()
    bias = None if module.bias is None else module.bias.clone()
    actor = merged(site, two.deltas)
    for mask in masks:
        show(actor, mask)
        check_rounded(module.weight, two.weight(site, weight, mask), weight)
        if bias is not None:
            check_rounded(module.bias, two.bias(site, bias, mask), bias)
    show(actor, 0)
    assert same(module, before)
    show(actor, masks[-1])
    close(actor)
    assert same(module, before) and hooks(module) == 0
    close(actor)
    assert same(module, before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_in_every_type(layer: str, dtype: torch.dtype) -> None:
    check_merge(layer, duo(layer, "lora", "full"), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layer", ["linear", "conv 3×3", "rows of a fused linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_module_type(kind: str, layer: str, dtype: torch.dtype) -> None:
    check_merge(layer, duo(layer, kind, "lora"), dtype, masks=(1, 2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("other", ["lora", "oft"])
@pytest.mark.parametrize("kind", ASKING)
def test_what_asks_for_the_base_gets_it_whatever_acts_beside_it(kind: str, other: str, dtype: torch.dtype) -> None:
    check_merge("linear", duo("linear", other, kind), dtype)
    check_merge("linear", duo("linear", kind, other), dtype)


@pytest.mark.parametrize("kind", ASKING)
def test_both_at_once_are_updates_of_the_base_and_not_of_each_other(kind: str) -> None:
    check_merge("linear", duo("linear", kind, kind), torch.float32)


@pytest.mark.parametrize("layer", ["linear", "conv 3×3"])
def test_fp64_weights_are_not_narrowed(layer: str) -> None:
    """Where ΔW is 0 the weight is the base itself, to its last bit."""
    check_merge(layer, duo(layer, "lora", "fused"), torch.float64)
    module = make_layer(layer, torch.float64)
    untouched = module.weight[len(module.weight) // 2 :].clone()
    show(merged(Site(module), duo(layer, "lora", "fused").deltas), 2)
    assert torch.equal(module.weight[len(module.weight) // 2 :], untouched)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (0.0, 1.0), (100.0, -100.0)])
def test_the_users_weight_scales_the_update(weights: tuple[float, float]) -> None:
    check_merge("linear", duo("linear", "lora with bias", "loha", weights), torch.float32)


def test_weight_zero_leaves_the_numbers_as_they_are() -> None:
    module = make_layer("linear")
    weight = module.weight.clone()
    show(merged(Site(module), duo("linear", "lora", "full", (0.0, 0.0)).deltas), 3)
    assert torch.equal(module.weight, weight)


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(6), lambda: nn.GroupNorm(2, 6)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_norms(norm: type, dtype: torch.dtype) -> None:
    module = norm().to(dtype).requires_grad_(False)
    before, weight, bias = snapshot(module), module.weight.clone(), module.bias.clone()
    dw, db = torch.linspace(-1, 1, 6), torch.linspace(2, 3, 6)
    actor = merged(Site(module), SiteDeltas(WeightedDelta(Norm(dw, db), 0.5), WeightedDelta(Norm(None, db), 2.0)))
    show(actor, 3)
    check_rounded(module.weight, weight.double() + 0.5 * dw.double(), weight)
    check_rounded(module.bias, bias.double() + 2.5 * db.double(), bias)
    show(actor, 2)
    assert torch.equal(module.weight, weight)
    close(actor)
    assert same(module, before)


@pytest.mark.parametrize("layer", ["linear", "conv 3×3"])
def test_a_bias_alone_moves_the_bias_alone(layer: str) -> None:
    module = make_layer(layer)
    before, weight, bias = snapshot(module), module.weight.clone(), module.bias.clone()
    added = torch.ones(len(bias))
    actor = merged(Site(module), SiteDeltas(WeightedDelta(Norm(None, added), 0.5), None))
    show(actor, 1)
    assert torch.equal(module.bias, bias + 0.5)
    assert torch.equal(module.weight, weight)
    close(actor)
    assert same(module, before)


masks = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(masks, st.sampled_from(sorted(LAYERS)), st.sampled_from(FLOATS), st.sampled_from(sorted(KINDS)))
def test_the_order_of_masks_leaves_no_trace(order: list[int], layer: str, dtype: torch.dtype, kind: str) -> None:
    two = duo(layer, kind, "full")
    assume(make_layer(layer).bias is not None or not two.deltas.with_bias)  # such a layer is left to bypass
    walked, fresh = make_layer(layer, dtype), make_layer(layer, dtype)
    before = snapshot(walked)
    actor, once = merged(site_of(layer, walked), two.deltas), merged(site_of(layer, fresh), two.deltas)
    for mask in order:
        show(actor, mask)
    show(once, order[-1])
    assert same(walked, snapshot(fresh))
    close(actor)
    assert same(walked, before)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_zeros_signs_and_nans_come_back(dtype: torch.dtype) -> None:
    module = make_layer("linear", dtype)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[module.weight.element_size()]
    ones = torch.finfo(dtype).bits
    quiet_nan = {torch.bfloat16: 0x7FC5, torch.float16: 0x7E05}.get(dtype, 0x7FC00123 if ones == 32 else 0x7FF8000000000123)
    module.weight.view(whole)[0, 0] = quiet_nan
    module.weight[0, 1], module.weight[1, 0], module.weight[1, 1] = -0.0, float("-inf"), torch.finfo(dtype).tiny / 2
    before = snapshot(module)
    actor = merged(Site(module), duo("linear", "lora", "lora").deltas)
    for mask in (1, 3, 2):
        show(actor, mask)
    close(actor)
    assert same(module, before)


def test_the_parameter_object_stays_the_same() -> None:
    """Others hold references: the weight is written in place."""
    module = make_layer("linear")
    weight, place = module.weight, module.weight.data_ptr()
    actor = merged(Site(module), duo("linear", "lora", "full").deltas)
    show(actor, 1)
    assert module.weight is weight and weight.data_ptr() == place
    close(actor)
    assert module.weight is weight and weight.data_ptr() == place


def test_inference_mode_weights_may_be_written() -> None:
    with torch.inference_mode():
        module = make_layer("linear", torch.float16)
    assert module.weight.is_inference()
    before = snapshot(module)
    actor = merged(Site(module), duo("linear", "lora with bias", "dora by output").deltas)
    show(actor, 3)
    assert not same(module, before)
    close(actor)
    assert same(module, before)


def test_autocast_changes_nothing() -> None:
    two = duo("linear", "lora", "loha")
    plain, under = make_layer("linear"), make_layer("linear")
    show(merged(Site(plain), two.deltas), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        show(merged(Site(under), two.deltas), 3)
    assert same(under, snapshot(plain))


def test_no_room_changes_nothing() -> None:
    two = duo("linear", "lora", "full")
    roomy, tight = make_layer("linear"), make_layer("linear")
    before = snapshot(tight)
    show(merged(Site(roomy), two.deltas), 3)
    actor = merged(Site(tight), two.deltas, budget=0)
    show(actor, 3)
    assert same(tight, snapshot(roomy))
    close(actor)
    assert same(tight, before)


def test_a_site_never_shown_is_never_copied() -> None:
    module = make_layer("linear")
    actor = merged(Site(module), duo("linear", "lora", "full").deltas)
    show(actor, 0)
    assert actor.weight is None and actor.bias is None


def test_two_row_sites_of_one_weight_do_not_meet() -> None:
    module = nn.Linear(6, 12, bias=False).requires_grad_(False)
    before, base = snapshot(module), module.weight.clone()
    two = duo("rows of a fused linear", "lora", "full")
    sites = [Site(module, rows) for rows in ((0, 4), (8, 12))]
    actors = [merged(site, two.deltas) for site in sites]
    for actor in actors:
        show(actor, 1)
    assert torch.equal(module.weight[4:8], base[4:8])
    for site in sites:
        check_rounded(site.take_part(module.weight), site.take_part(two.weight(site, base, 1)), site.take_part(base))
    close(actors[0])
    assert torch.equal(module.weight[:4], base[:4]) and not torch.equal(module.weight[8:], base[8:])
    close(actors[1])
    assert same(module, before)
