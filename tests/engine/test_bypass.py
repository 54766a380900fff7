"""Theorem: a bypassed layer answers as if its weight were base + Σ w·ΔW, and the weight is never written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from klora_lib.engine.bypass import Bypassed
from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.lora.deltas import Norm

from ..half import without_half
from .cases import FLOATS, KINDS, LAYERS, Duo, duo, hooks, make_layer, rand, same, site_of, snapshot


def answer(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """What ``module`` would say in fp64 with these parameters."""
    if isinstance(module, nn.Conv2d):
        return module._conv_forward(x.double(), weight, bias)
    return nn.functional.linear(x.double(), weight, bias)


def check_output(module: nn.Module, site: Site, two: Duo, mask: int, x: Tensor) -> None:
    """Within the rounding that the layer's own sum has in this dtype."""
    out = module(x)
    base_bias = module.bias
    weight, bias = two.weight(site, module.weight, mask), two.bias(site, base_bias, mask)
    want = answer(module, weight, bias, x)
    sizes = module.weight.double().abs() + (weight - module.weight.double()).abs()
    scale = answer(module, sizes, None if bias is None else bias.abs(), x.abs())
    eps = torch.finfo(module.weight.dtype).eps
    assert out.dtype == x.dtype and out.shape == want.shape
    assert ((out.double() - want).abs() <= 4 * eps * scale + 1e-6 * scale.max()).all()


def check_bypass(layer: str, two: Duo, dtype: torch.dtype) -> None:
    module = make_layer(layer, dtype)
    site, x = site_of(layer, module), rand(*LAYERS[layer].x, seed=7).to(dtype)
    before, plain = snapshot(module), module(x)
    actor = Bypassed(site, two.deltas)
    for mask in (1, 2, 3):
        actor.show(mask)
        check_output(module, site, two, mask, x)
    assert same(module, before)
    actor.show(0)
    assert torch.equal(module(x), plain)
    actor.show(3)
    actor.close()
    assert hooks(module) == 0 and same(module, before) and torch.equal(module(x), plain)
    actor.close()
    assert hooks(module) == 0


@pytest.mark.parametrize("dtype", without_half([*FLOATS, torch.float64]))
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_in_every_type(layer: str, dtype: torch.dtype) -> None:
    check_bypass(layer, duo(layer, "lora", "full"), dtype)


@pytest.mark.parametrize("layer", ["linear", "linear without bias", "conv 3×3", "rows of a fused linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_module_type(kind: str, layer: str) -> None:
    check_bypass(layer, duo(layer, kind, "lora with bias"), torch.float32)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (0.0, 1.0)])
def test_the_users_weight_scales_the_update(weights: tuple[float, float]) -> None:
    check_bypass("linear", duo("linear", "lora with bias", "dora by output", weights), torch.float32)


@pytest.mark.parametrize("layer", ["linear", "conv 3×3", "conv 1×1"])
def test_a_bias_alone_moves_the_output_by_itself(layer: str) -> None:
    module = make_layer(layer)
    x, added = rand(*LAYERS[layer].x, seed=7), rand(LAYERS[layer].shape[0], seed=8)
    plain = module(x)
    actor = Bypassed(Site(module), SiteDeltas(WeightedDelta(Norm(None, added), 0.5), None))
    actor.show(1)
    moved = (module(x) - plain).movedim(1 if isinstance(module, nn.Conv2d) else -1, -1)
    assert torch.allclose(moved, (0.5 * added).expand_as(moved), atol=1e-6)
    actor.close()
    assert torch.equal(module(x), plain)


masks = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(masks, st.sampled_from(sorted(LAYERS)), st.sampled_from(sorted(KINDS)))
def test_the_order_of_masks_leaves_no_trace(order: list[int], layer: str, kind: str) -> None:
    two, x = duo(layer, kind, "full"), rand(*LAYERS[layer].x, seed=7)
    walked, fresh = make_layer(layer), make_layer(layer)
    actor, once = Bypassed(site_of(layer, walked), two.deltas), Bypassed(site_of(layer, fresh), two.deltas)
    for mask in order:
        actor.show(mask)
        walked(x)
    once.show(order[-1])
    assert torch.equal(walked(x), fresh(x))
    actor.close()
    assert hooks(walked) == 0


class Cast(nn.Linear):
    """How hosts run fp8 storage: the weight is widened to the input's type at every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_fp8_weights(kind: str) -> None:
    module = Cast(6, 8).requires_grad_(False)
    module.weight = nn.Parameter(rand(8, 6, seed=1).to(torch.float8_e4m3fn), requires_grad=False)
    before, two, x = snapshot(module), duo("linear", kind, "lora"), rand(2, 5, 6, seed=7)
    base = module.weight.double()
    actor = Bypassed(Site(module), two.deltas)
    for mask in (1, 2, 3):
        actor.show(mask)
        want = nn.functional.linear(
            x.double(), two.weight(Site(module), base, mask), two.bias(Site(module), module.bias, mask)
        )
        assert torch.allclose(module(x).double(), want, atol=1e-5)
    actor.close()
    assert same(module, before) and hooks(module) == 0


def test_the_input_may_be_of_another_type_than_the_weight() -> None:
    module = Cast(6, 8).to(torch.bfloat16).requires_grad_(False)
    two = duo("linear", "lora", "loha")
    actor = Bypassed(Site(module), two.deltas)
    for x in (rand(5, 6, seed=7), rand(5, 6, seed=7).bfloat16(), rand(5, 6, seed=7)):
        plain = module(x)
        actor.show(3)
        assert module(x).dtype == x.dtype and not torch.equal(module(x), plain)
        actor.show(0)


def test_autocast_has_the_final_say_in_the_outputs_type() -> None:
    module, x = make_layer("linear"), rand(5, 6, seed=7)
    actor = Bypassed(Site(module), duo("linear", "lora", "full").deltas)
    actor.show(3)
    exact = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), exact, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", without_half([torch.bfloat16, torch.float16]))
@pytest.mark.parametrize("layer", ["linear", "conv 3×3", "conv 1×1", "rows of a fused linear"])
@pytest.mark.parametrize("mask", [1, 2, 3])
def test_on_the_cpu_what_is_added_in_half_precision_is_rounded_once(layer: str, mask: int, dtype: torch.dtype) -> None:
    """Its products are in fp32, as most CPUs have none in half precision: between down and up nothing is lost."""
    module = make_layer(layer, dtype)
    site, x, two = site_of(layer, module), rand(*LAYERS[layer].x, seed=7).to(dtype), duo(layer, "lora", "fused")
    plain = module(x)
    moved = two.weight(site, module.weight, mask) - module.weight.double()
    want = plain.double() + answer(module, moved, None, x)
    actor = Bypassed(site, two.deltas)
    actor.show(mask)
    slack = 32 * torch.finfo(torch.float32).eps * float(want.abs().max())
    assert ((module(x).double() - want).abs() <= torch.finfo(dtype).eps / 2 * want.abs() * 1.001 + slack).all()
    actor.close()


@pytest.mark.parametrize("layer", ["linear", "conv 3×3", "inpainting", "wider linear"])
@pytest.mark.parametrize(
    ("kinds", "ranks"), [(("lora", "fused"), [6]), (("lora", "full"), [3, None]), (("full", "lora"), [3, None])]
)
def test_two_updates_with_factors_are_one_pair_of_factors(
    layer: str, kinds: tuple[str, str], ranks: list[int | None]
) -> None:
    """Ranks side by side: two products for both LoRAs.  A whole matrix stays by itself."""
    module, two = make_layer(layer), duo(layer, *kinds)
    actor = Bypassed(site_of(layer, module), two.deltas)
    for mask in (3, 1, 3):
        actor.show(mask)
        check_output(module, site_of(layer, module), two, mask, rand(*LAYERS[layer].x, seed=7))
    assert [len(ready.weights[0]) if len(ready.weights) == 2 else None for ready in actor.made] == ranks
    actor.close()
    assert not actor.made


def test_two_row_sites_of_one_weight_do_not_meet() -> None:
    module = nn.Linear(6, 12).requires_grad_(False)
    two, x = duo("rows of a fused linear", "lora with bias", "full"), rand(5, 6, seed=7)
    plain = module(x)
    actors = [Bypassed(Site(module, rows), two.deltas) for rows in ((0, 4), (8, 12))]
    for actor in actors:
        actor.show(1)
    assert torch.equal(module(x)[:, 4:8], plain[:, 4:8])
    assert torch.allclose((module(x) - plain)[:, :4], (module(x) - plain)[:, 8:], atol=1e-5)
    actors[0].close()
    assert torch.equal(module(x)[:, :8], plain[:, :8]) and not torch.equal(module(x)[:, 8:], plain[:, 8:])
    actors[1].close()
    assert torch.equal(module(x), plain) and hooks(module) == 0


def test_other_peoples_hooks_stay() -> None:
    module = make_layer("linear")
    theirs = module.register_forward_hook(lambda m, a, o: o + 1)
    actor = Bypassed(Site(module), duo("linear", "lora", "full").deltas)
    actor.show(1)
    actor.close()
    assert list(module._forward_hooks) == [theirs.id]


def test_a_site_never_shown_has_no_hook() -> None:
    module = make_layer("linear")
    actor = Bypassed(Site(module), duo("linear", "lora", "full").deltas)
    actor.show(0)
    assert hooks(module) == 0


def test_inference_mode_is_no_obstacle() -> None:
    with torch.inference_mode():
        module, x = make_layer("linear"), rand(5, 6, seed=7)
        plain = module(x)
        actor = Bypassed(Site(module), duo("linear", "dora by input", "glora").deltas)
        actor.show(3)
        assert not torch.equal(module(x), plain)
        actor.close()
        assert torch.equal(module(x), plain)


@pytest.mark.parametrize("layer", [name for name in LAYERS if name.startswith("conv")])
def test_a_convolution_of_one_image_without_a_batch(layer: str) -> None:
    """Channels, rank and height may be equal: then nothing but the result tells."""
    module, two = make_layer(layer, torch.float32), duo(layer, "lora", "lora")
    site, x = site_of(layer, module), rand(*LAYERS[layer].x, seed=7)
    actor = Bypassed(site, two.deltas)
    actor.show(3)
    assert torch.allclose(module(x[0]), module(x)[0], atol=1e-5)
