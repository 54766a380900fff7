"""Theorems of one pass: every step is W0 + w·ΔW of the plan, only what changes is touched, and closing undoes it all."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from klora_lib.engine.bypass import Bypassed
from klora_lib.engine.merge import Merged
from klora_lib.engine.session import Placed, Session
from klora_lib.engine.site import Site
from klora_lib.errors import HostError
from klora_lib.rule.schedule import compute_step_progress
from klora_lib.settings import Settings

from .cases import CPU, FLOATS, LAYERS, duo, hooks, make_layer, rand, same, snapshot
from .stack import NAMES, NORM, Prepared, dense, make_stack, prepare
from .test_bypass import Cast, answer

STEPS, WEIGHTS = 12, (0.9, 1.2)
METHODS = ("klora", "direct", "random", "switch", "content", "style")


def masks_at(run: Prepared, t: int) -> dict[str, int]:
    """From the plan's own table; norms are added always (or from the one LoRA the method leaves)."""
    column = run.plan.table(STEPS)[:, t].tolist()
    added = {"content": 1, "style": 2}.get(run.plan.method, 3)
    return {u.name: m for u, m in zip(run.pair.units, column)} | {u.name: added for u in run.pair.added}


def all_of(stack: dict[str, nn.Module]) -> nn.Module:
    return nn.ModuleList(stack.values())


def outputs(stack: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {name: stack[name](rand(*LAYERS[layer].x, seed=9)) for name, layer in NAMES.items()}


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_the_dense_weight_of_the_plan(method: str, engine: str) -> None:
    run = prepare(Settings(method=method), engine)
    before = {name: {k: t.clone() for k, t in m.state_dict().items()} for name, m in run.stack.items()}
    bits, plain = snapshot(all_of(run.stack)), outputs(run.stack)
    for t in range(STEPS):
        run.session.advance(compute_step_progress(t, STEPS))
        want = dense(run, before, masks_at(run, t), WEIGHTS)
        got = outputs(run.stack)
        for name, layer in NAMES.items():
            x = rand(*LAYERS[layer].x, seed=9)
            expected = answer(run.stack[name], want[name]["weight"], want[name].get("bias"), x)
            assert torch.allclose(got[name].double(), expected, atol=2e-5), (t, name)
        assert torch.allclose(run.stack[NORM].weight.double(), want[NORM]["weight"], atol=1e-6)
        assert torch.allclose(run.stack[NORM].bias.double(), want[NORM]["bias"], atol=1e-6)
        if engine == "merge":
            for name in NAMES:
                assert torch.allclose(run.stack[name].weight.double(), want[name]["weight"], atol=1e-6), (t, name)
        else:
            assert all(torch.equal(run.stack[name].weight, before[name]["weight"]) for name in NAMES)
    run.session.close()
    assert same(all_of(run.stack), bits) and hooks(all_of(run.stack)) == 0
    assert all(torch.equal(out, plain[name]) for name, out in outputs(run.stack).items())


def test_the_plan_of_these_tests_switches() -> None:
    """The theorem above would hold of a plan that never changes, too."""
    table = prepare().plan.table(STEPS)
    switching = [row for row in table.tolist() if len(set(row)) == 2]
    assert len(switching) >= 2 and len({row.index(2) for row in switching}) >= 2


class Spy:
    def __init__(self, actor: object, calls: list[tuple[int, int]], i: int):
        self.actor, self.calls, self.i = actor, calls, i

    def show(self, mask: int) -> None:
        self.calls.append((self.i, mask))
        self.actor.show(mask)  # type: ignore[attr-defined]

    def close(self) -> None:
        self.actor.close()  # type: ignore[attr-defined]

    def list_written(self) -> list[torch.Tensor]:
        return self.actor.list_written()  # type: ignore[attr-defined]


def spied(run: Prepared) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    run.session.actors = [Spy(a, calls, i) for i, a in enumerate(run.session.actors)]  # type: ignore[misc]
    return calls


def test_only_sites_whose_choice_changes_are_touched() -> None:
    run = prepare()
    names = [u.name for u in (*run.pair.units, *run.pair.added)]
    calls, shown = spied(run), dict.fromkeys(names, 0)
    for t in range(STEPS):
        wanted = masks_at(run, t)
        run.session.advance(compute_step_progress(t, STEPS))
        assert sorted(calls) == [(i, wanted[n]) for i, n in enumerate(names) if wanted[n] != shown[n]]
        calls.clear()
        shown = wanted
        run.session.advance(compute_step_progress(t, STEPS))
        assert calls == []  # the second call of a second-order step


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5), st.sampled_from(METHODS))
def test_any_walk_ends_where_a_fresh_session_would(walk: list[float], method: str) -> None:
    """Restart samplers and hires passes jump back in progress."""
    one, two = prepare(Settings(method=method), "merge"), prepare(Settings(method=method), "merge")
    for progress in walk:
        one.session.advance(progress)
    two.session.advance(walk[-1])
    assert same(all_of(one.stack), snapshot(all_of(two.stack)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_closing_in_the_middle_restores_every_bit(dtype: torch.dtype) -> None:
    run = prepare(engine="merge", stack=make_stack(dtype))
    before = snapshot(all_of(run.stack))
    for t in range(5):
        run.session.advance(compute_step_progress(t, STEPS))
    assert not same(all_of(run.stack), before)
    run.session.close()
    assert same(all_of(run.stack), before)
    run.session.close()
    run.session.advance(0.9)
    assert same(all_of(run.stack), before), "a closed session does nothing any more"


def test_opening_touches_nothing() -> None:
    stack = make_stack()
    before = snapshot(all_of(stack))
    run = prepare(stack=stack)
    assert same(all_of(stack), before) and hooks(all_of(stack)) == 0
    run.session.close()
    assert same(all_of(stack), before)


@pytest.mark.parametrize("engine", ["merge", "bypass"])
def test_a_site_that_fails_to_advance_does_not_keep_the_others_from_being_restored(engine: str) -> None:
    run = prepare(engine=engine)
    before = snapshot(all_of(run.stack))
    run.session.actors[2].show = fails  # type: ignore[method-assign]
    with pytest.raises(HostError, match="cpu has no memory left to change .*, one of 7 that were to change in this step"):
        run.session.advance(0.0)
    run.session.close()
    assert same(all_of(run.stack), before) and hooks(all_of(run.stack)) == 0


def test_an_update_that_fails_half_way_is_undone() -> None:
    run = prepare(engine="merge")
    before = snapshot(all_of(run.stack))
    run.session.advance(0.0)
    broken = run.session.actors[-1]
    assert isinstance(broken, Merged)
    broken.write_bias = fails  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        broken.show(1)  # the weight is written, the bias is not
    run.session.close()
    assert same(all_of(run.stack), before)


def test_a_site_that_fails_to_close_is_tried_again() -> None:
    run = prepare(engine="merge")
    before = snapshot(all_of(run.stack))
    run.session.advance(0.0)
    stuck = run.session.actors[1]
    close, stuck.close = stuck.close, fails  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        run.session.close()
    left = {
        name
        for name, m in run.stack.items()
        if not same(m, {k.split(".", 1)[1]: t for k, t in before.items() if k.startswith(f"{list(run.stack).index(name)}.")})
    }
    assert left == {[u.name for u in run.pair.units][1]}
    stuck.close = close  # type: ignore[method-assign]
    run.session.close()
    assert same(all_of(run.stack), before)


def fails(*_: object) -> None:
    raise MemoryError("no room")


def test_autocast_and_grad_mode_around_it_change_nothing() -> None:
    plain, under = prepare(engine="merge"), prepare(engine="merge")
    plain.session.advance(0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        under.session.advance(0.5)
    assert same(all_of(under.stack), snapshot(all_of(plain.stack)))


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        run = prepare(engine="merge")
    before = snapshot(all_of(run.stack))
    run.session.advance(0.0)
    assert not same(all_of(run.stack), before)
    run.session.close()
    assert same(all_of(run.stack), before)


# --- which engine ---


def session_on(modules: Iterable[nn.Module], engine: str, kind: str = "lora") -> Session:
    two, plan = duo("linear", kind, "full"), prepare().plan
    return Session(plan, [Placed(None, 3, Site(m), two.deltas) for m in modules], engine, CPU)


def packed() -> nn.Module:
    module = Cast(6, 8).requires_grad_(False)
    module.weight = nn.Parameter(rand(8, 6, seed=1).to(torch.float8_e4m3fn), requires_grad=False)
    return module


def test_auto_merges_plain_weights_and_bypasses_packed_ones_layer_by_layer() -> None:
    stack = nn.ModuleList([make_layer("linear"), packed(), make_layer("linear", torch.float16), packed()])
    before = snapshot(stack)
    session = session_on(stack, "auto")
    assert [type(a) for a in session.actors] == [Merged, Bypassed, Merged, Bypassed]
    session.advance(0.0)
    assert [same(m, {k.split(".", 1)[1]: t for k, t in before.items() if k[0] == str(i)}) for i, m in enumerate(stack)] == [
        False,
        True,
        False,
        True,
    ]
    session.close()
    assert same(stack, before) and hooks(stack) == 0


def test_merge_refuses_packed_weights_in_one_sentence() -> None:
    with pytest.raises(HostError) as refusal:
        session_on([make_layer("linear"), packed(), packed()], "merge")
    assert str(refusal.value) == "engine: merge cannot write torch.float8_e4m3fn weights; choose auto or bypass"


class Quantised(Tensor):
    """Packs its numbers, and says that it is what it unpacks to."""


def test_packed_weights_are_not_taken_for_what_they_say() -> None:
    stack = make_stack()
    name = next(iter(NAMES))
    stack[name].weight = nn.Parameter(stack[name].weight.detach().as_subclass(Quantised), requires_grad=False)
    run = prepare(Settings(), stack=stack)
    kinds = {type(actor) for actor in run.session.actors if actor.site.module is stack[name]}
    assert kinds == {Bypassed}
    with pytest.raises(HostError, match="merge cannot write Quantised weights; choose auto or bypass"):
        prepare(Settings(), "merge", stack=stack)


def test_bypass_is_for_every_layer_but_norms() -> None:
    run = prepare(engine="bypass")
    kinds = {u.name: type(a) for u, a in zip((*run.pair.units, *run.pair.added), run.session.actors)}
    assert kinds.pop(NORM) is Merged and set(kinds.values()) == {Bypassed}


def test_a_bias_for_a_layer_without_one_is_bypassed() -> None:
    module, x = make_layer("linear without bias"), rand(5, 6, seed=7)
    before, plain = snapshot(module), module(x)
    session = session_on([module], "merge", "lora with bias")
    session.advance(0.0)
    assert not torch.equal(module(x), plain)
    session.close()
    assert same(module, before) and hooks(module) == 0 and module.bias is None


def test_a_norm_without_a_bias_gets_no_bias() -> None:
    """RMS norms and LayerNorm(bias=False) have none; a pair that brings one must not end the pass."""
    from klora_lib.engine.site import SiteDeltas, WeightedDelta
    from klora_lib.lora.deltas import Norm

    module = nn.LayerNorm(6, bias=False).requires_grad_(False)
    before = snapshot(module)
    deltas = SiteDeltas(WeightedDelta(Norm(torch.ones(6), torch.ones(6)), 1.0), None)
    session = Session(prepare().plan, [Placed(None, 3, Site(module), deltas)], "auto", CPU)
    session.advance(0.0)
    assert torch.equal(module.weight, torch.full((6,), 2.0))
    session.close()
    assert same(module, before)
