"""Theorem: however a weight is packed and wherever it lies, output with a choice = output + Δx, and it is not written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.bypass import Bypassed
from klora_lib.engine.memory import MemoryBudget
from klora_lib.engine.merge import Merged
from klora_lib.engine.session import Placed, Session, make_actor
from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.errors import HostError
from klora_lib.lora.deltas import Norm

from ..half import without_half
from .cases import CPU, KINDS, Duo, bits, duo, hooks, make_layer, rand, same, snapshot
from .stack import prepare
from .storages import IN, OUT, STORAGES, Cast, base, numbers, site_of

CUDA = torch.device("cuda")  # never computed on here
COMPUTED = without_half(STORAGES, lambda name: STORAGES[name].dtype)


def actor_of(module: nn.Module, two: Duo, engine: str = "auto", device: torch.device = CPU) -> Bypassed | Merged:
    return make_actor(Placed(None, 3, site_of(module), two.deltas), engine, device, MemoryBudget(float("inf")))  # type: ignore[return-value]


def wanted(module: nn.Module, plain: Tensor, two: Duo, mask: int, x: Tensor) -> Tensor:
    """output + Σ w·(ΔW x + Δb) in fp64, ΔW written out by hand from the numbers that the layer computes with."""
    weight = numbers(module).double()
    moved = two.weight(Site(module, None), weight, mask) - weight
    bias = torch.zeros(OUT, dtype=torch.float64)
    for i, weighted in enumerate((two.deltas.content, two.deltas.style)):
        if mask >> i & 1 and weighted is not None and weighted.delta.bias is not None:
            bias += weighted.weight * weighted.delta.bias.double()
        if mask >> i & 1 and weighted is not None and weighted.delta.bias_factor is not None:
            bias += weighted.weight * weighted.delta.bias_factor.double() * module.bias.double()
    return plain.double() + nn.functional.linear(x.double(), moved, bias)


def test_a_scaled_bias_that_is_not_in_memory_is_refused() -> None:
    module = nn.Linear(IN, OUT, device="meta")
    with pytest.raises(HostError, match="an IA3 that scales a layer's bias cannot act where the layer is streamed"):
        placed = Placed(None, 3, Site(module), duo("linear", "ia3", "lora").deltas)
        make_actor(placed, "auto", CPU, MemoryBudget(float("inf")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMPUTED)
def test_packed_weights(name: str, kind: str) -> None:
    storage = STORAGES[name]
    module, x = storage.make(), rand(2, 5, IN, seed=7).to(storage.dtype)
    two = duo("linear", kind, "lora with bias")
    actor = actor_of(module, two)
    assert isinstance(actor, Bypassed)
    untouched, parameter = storage.make(), module.weight
    plain = untouched(x)
    for mask in (1, 2, 3):
        actor.show(mask)
        got, want = module(x), wanted(module, plain, two, mask, x)
        eps = torch.finfo(x.dtype).eps
        assert got.dtype == x.dtype and not torch.equal(got, plain)
        assert ((got.double() - want).abs() <= 8 * eps * (want.abs() + plain.double().abs() + 4)).all()
    actor.close()
    assert torch.equal(bits(module.weight), bits(untouched.weight))
    assert module.weight is parameter or "first forward" in name
    assert hooks(module) == 0 and not actor.made and torch.equal(module(x), plain)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_site_has_the_shape_of_the_numbers(name: str) -> None:
    module = STORAGES[name].make()
    before = site_of(module).shape
    module(rand(2, IN, seed=7).to(STORAGES[name].dtype))
    assert before == site_of(module).shape == (OUT, IN)


@pytest.mark.parametrize("name", STORAGES)
def test_merge_is_refused_by_the_name_of_the_packing(name: str) -> None:
    with pytest.raises(HostError) as refusal:
        actor_of(STORAGES[name].make(), duo("linear", "lora", "full"), "merge")
    assert str(refusal.value) == f"engine: merge cannot write {STORAGES[name].kind}; choose auto or bypass"


# --- weights in host memory ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_where_it_computes_is_bypassed_unless_merge_is_asked_for(dtype: torch.dtype) -> None:
    module, two = Cast(base().to(dtype)), duo("linear", "lora", "full")
    assert type(actor_of(module, two)) is Merged
    assert type(actor_of(module, two, "auto", CUDA)) is Bypassed
    assert type(actor_of(module, two, "merge", CUDA)) is Merged
    assert type(actor_of(module.to("meta"), two)) is Bypassed


def test_a_layer_moved_and_cast_between_two_forwards() -> None:
    """The host unloads, loads and casts layers within a pass: ``.data`` changes, or the parameter is another one."""
    module, two, x = Cast(base()), duo("linear", "lora", "dora by output"), rand(5, IN, seed=7)
    plain = {dtype: Cast(base().to(dtype))(x) for dtype in (torch.float32, torch.float16)}
    actor = actor_of(module, two, "bypass")
    actor.show(3)
    assert torch.allclose(module(x).double(), wanted(module, plain[torch.float32], two, 3, x), atol=1e-5)
    module.half()
    module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
    assert torch.allclose(module(x).double(), wanted(module, plain[torch.float32], two, 3, x), atol=5e-3)
    actor.close()
    assert hooks(module) == 0 and torch.equal(module.weight, base().half())


def test_a_merged_layer_moved_within_a_pass_is_restored_where_it_is_now() -> None:
    module = Cast(base())
    before = snapshot(module)
    actor = actor_of(module, duo("linear", "lora", "full"), "merge")
    actor.show(3)
    module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
    module.bias.data = module.bias.data.clone()
    actor.close()
    assert same(module, before)


def test_host_memory_is_not_written_while_a_gpu_may_still_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from pinned memory returns before it has happened: restoring must wait for the device."""
    module, seen = Cast(base()), []
    actor = actor_of(module, duo("linear", "lora", "full"), "merge", CUDA)
    assert isinstance(actor, Merged)
    actor.back_up()
    with torch.no_grad():
        module.weight.add_(1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append((device, module.weight.clone())))
    actor.close()
    ((device, then),) = seen
    assert device == torch.device("cuda:0") and torch.equal(then, base() + 1) and torch.equal(module.weight, base())
    actor.close()
    assert len(seen) == 1


def test_backups_beside_weights_in_host_memory_take_no_room_of_the_gpu() -> None:
    budget = MemoryBudget(10.0)
    Merged(Site(make_layer("linear")), duo("linear", "lora", "full").deltas, CUDA, budget).back_up()
    assert budget.free == 10.0


# --- memory ---


@pytest.mark.parametrize(("kind", "kept"), [("lora", 1), ("fused", 1), ("loha", 0), ("dora by input", 0), ("full", 0)])
def test_without_room_only_factors_are_kept_and_the_output_is_the_same(kind: str, kept: int) -> None:
    two, x = duo("linear", kind, "lora"), rand(5, IN, seed=7)
    outs = []
    for free, held in ((-1.0, kept), (float("inf"), 1)):  # a GPU that streams its weights has less free than we leave it
        module = Cast(base())
        actor = Bypassed(site_of(module), two.deltas, MemoryBudget(free))
        actor.show(1)
        outs.append(module(x))
        assert len(actor.made) == held and torch.equal(module(x), outs[-1])
    assert torch.equal(*outs)


def test_room_comes_back_with_every_switch() -> None:
    """Two whole matrices fit, three do not: only what the last choice took must be held."""
    module, x, budget = Cast(base()), rand(5, IN, seed=7), MemoryBudget(2.0 * OUT * IN * 4)
    actor = Bypassed(site_of(module), duo("linear", "full", "loha").deltas, budget)
    for mask in (3, 1, 2, 3, 1):
        actor.show(mask)
        module(x)
        assert budget.free == (2 - len(actor.made)) * OUT * IN * 4 and len(actor.made) == mask.bit_count()
    actor.close()
    assert budget.free == 2 * OUT * IN * 4


# --- norms, inference tensors ---


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64])
def test_a_norm_stored_in_any_type_is_merged_and_restored(dtype: torch.dtype) -> None:
    """With fp8 storage a host keeps the norms in fp8 too."""
    module = nn.LayerNorm(OUT).to(dtype).requires_grad_(False)
    before, added = snapshot(module), rand(OUT, seed=3)
    placed = Placed(None, 3, Site(module), SiteDeltas(WeightedDelta(Norm(added, added), 0.5), None))
    actor = make_actor(placed, "auto", CPU, MemoryBudget(0))
    actor.show(1)
    assert torch.equal(bits(module.weight), bits((1 + 0.5 * added.to(torch.float64)).float().to(dtype))) or (
        dtype == torch.float64 and torch.allclose(module.weight, 1 + 0.5 * added.double(), atol=1e-15)
    )
    assert torch.equal(bits(module.bias), bits((0.5 * added).to(dtype)))
    actor.close()
    assert same(module, before)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_inference_parameters_inside_and_outside_inference_mode(engine: str) -> None:
    with torch.inference_mode():
        module, x = Cast(base()), rand(5, IN, seed=7)
    assert module.weight.is_inference()
    before, plain, parameter = snapshot(module), module(x), module.weight
    two = duo("linear", "lora", "dora by input")
    session = Session(prepare().plan, [Placed(None, 3, site_of(module), two.deltas)], engine, CPU)
    session.advance(0.0)  # outside
    assert torch.allclose(module(x).double(), wanted(Cast(base()), plain, two, 3, x), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(module(x).double(), wanted(Cast(base()), plain, two, 3, x), atol=1e-5)
    session.close()
    assert same(module, before) and module.weight is parameter and torch.equal(module(x), plain)


# --- a host that rewrites weights within a pass ---


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("replaced", [True, False])
def test_what_the_host_writes_within_a_pass_is_its_own_and_stays(engine: str, replaced: bool) -> None:
    """Inside ``aside`` it finds its own numbers, and afterwards the choice acts on what it wrote."""
    module, x = Cast(base()), rand(5, IN, seed=7)
    two = duo("linear", "dora by output", "lora")
    session = Session(prepare().plan, [Placed(None, 3, site_of(module), two.deltas)], engine, CPU)
    session.advance(0.0)
    with session.aside():
        assert torch.equal(module.weight, base()) and hooks(module) == 0
        if replaced:
            module.weight = nn.Parameter(base() * 2, requires_grad=False)
        else:
            with torch.no_grad():
                module.weight.mul_(2)
    other = Cast(base() * 2)
    other.bias = Cast(base()).bias
    want = wanted(other, other(x), two, 3, x)
    assert torch.allclose(module(x).double(), want, atol=1e-5)
    session.close()
    assert torch.equal(module.weight, base() * 2) and hooks(module) == 0


def test_aside_of_a_closed_session_does_nothing() -> None:
    module = Cast(base())
    session = Session(prepare().plan, [Placed(None, 3, site_of(module), duo("linear", "lora", "full").deltas)], "merge", CPU)
    session.advance(0.0)
    session.close()
    before = snapshot(module)
    with session.aside():
        assert same(module, before)
    assert same(module, before)


def test_a_pass_that_ends_inside_aside_leaves_nothing() -> None:
    module = Cast(base())
    before = snapshot(module)
    session = Session(prepare().plan, [Placed(None, 3, site_of(module), duo("linear", "lora", "full").deltas)], "merge", CPU)
    session.advance(0.0)
    with pytest.raises(MemoryError), session.aside():
        raise MemoryError
    session.close()
    assert same(module, before)
