"""Theorems: what acts is the formula on dense fp64 matrices, for every type of module; what is not decided acts as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from klora_lib.errors import PairError
from klora_lib.lora.combined import Elected, Projected
from klora_lib.lora.file import lora_file
from klora_lib.lora.rows import cut_rows
from klora_lib.rule.cache import Library
from klora_lib.rule.combiners import SHARE, Acting
from klora_lib.rule.pairing import Pair, Unit, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.settings import Settings

from ..engine.cases import DENSE, DORAS, KINDS, LOW_RANK, RELATIVE, flat, rand
from ..pairs import ATTENTION, as_file, as_pair, random_layers

CPU = torch.device("cpu")
SHAPES = [(8, 6), (6, 4, 3, 3)]
WEIGHTS = (0.8, -0.6)
ASKING = (*DORAS, *RELATIVE, "glora")
PAIRS = [(content, style) for content in KINDS for style in KINDS if style not in ASKING]


def planned(content: str, style: str, shape: tuple[int, ...], **given: object) -> tuple[Plan, Unit]:
    """The plan of one layer with modules of these types."""
    unit = Unit("x.attn1.to_q", KINDS[content](shape, 40)[0], KINDS[style](shape, 60)[0])
    pair, settings = Pair(as_file(random_layers(1), "one"), as_file(random_layers(2), "two"), (unit,), ()), Settings(**given)
    scores = Library().measure(pair, settings, CPU, weights=lambda unit, device: base_of(shape))
    return make_plan(pair, scores, settings, 30), unit


def total(acting: Acting, base: Tensor) -> Tensor:
    """What is added to the weight ``base`` [out, columns] where both may act."""
    pairs = zip((acting.unit.content, acting.unit.style), acting.weights)
    return sum((w * delta.update(base.clone()).double() for delta, w in pairs if delta is not None), torch.zeros(1))


def updates(content: str, style: str, shape: tuple[int, ...], base: Tensor) -> tuple[Tensor, Tensor]:
    return KINDS[content](shape, 40)[1](base.double()), KINDS[style](shape, 60)[1](base.double())


def base_of(shape: tuple[int, ...]) -> Tensor:
    return rand(*flat(shape), seed=7)


def left(matrix: Tensor, share: float = 1.0) -> Tensor:
    """The fewest directions of ``matrix`` with this share of its energy: Q."""
    _, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    if share == 1.0:
        return right[sizes > 1e-9 * sizes.max()].T
    held = sizes.square().cumsum(0) / sizes.square().sum()
    return right[: int((held < share).sum()) + 1].T


# --- np ---


@pytest.mark.parametrize("mu", [0.5, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("content", "style"), PAIRS)
def test_np_takes_the_content_out_of_the_styles_rows(content: str, style: str, shape: tuple[int, ...], mu: float) -> None:
    plan, unit = planned(content, style, shape, method="np", mu=mu)
    (acting,) = plan.acting(WEIGHTS)
    base = base_of(shape)
    c, s = updates(content, style, shape, base)
    q = left(s, 1.0 if style in LOW_RANK else SHARE)
    wanted = WEIGHTS[0] * (c - mu / (1 + mu) * c @ q @ q.T) + WEIGHTS[1] * s
    assert torch.allclose(total(acting, base), wanted, atol=2e-5, rtol=1e-4)
    assert acting.unit.style is unit.style and acting.weights == WEIGHTS
    assert float((c @ q).norm()) > 0.1, "there is something to take out"
    if mu > 1:
        assert float((acting.unit.content.update(base.clone()).double() @ q).norm()) < 1e-4 * float(c.norm())
    if content in LOW_RANK:
        before, after = unit.content.factors(), acting.unit.content.factors()
        assert torch.equal(before[0], after[0]) and before[2] == after[2] and after[1].shape == before[1].shape
        dense = acting.unit.content.dense().double()
        assert torch.allclose(after[2] * after[0].double() @ after[1].double(), dense, atol=2e-6)
    assert (acting.unit.content.bias is None) == (unit.content.bias is None)


@pytest.mark.parametrize("content", KINDS)
def test_np_at_mu_zero_is_direct(content: str) -> None:
    plan, _ = planned(content, "lora", (8, 6), method="np", mu=0.0)
    direct, _ = planned(content, "lora", (8, 6), method="direct")
    base = base_of((8, 6))
    assert torch.equal(total(plan.acting(WEIGHTS)[0], base), total(direct.acting(WEIGHTS)[0], base))
    assert torch.equal(plan.table(9), direct.table(9))


@pytest.mark.parametrize("style", ASKING)
def test_np_refuses_a_style_whose_directions_are_the_models(style: str) -> None:
    with pytest.raises(PairError, match="style: 'two' is a DoRA or its like in x.attn1.to_q, and acts in all directions"):
        planned("lora", style, (8, 6), method="np")


def test_np_of_some_rows_is_some_rows_of_np() -> None:
    """A model may have a fused layer of the files in parts; columns are not asked about rows."""
    for content in ("lora", "full", "dora by output"):
        plan, _ = planned(content, "lora", (8, 6), method="np")
        whole = plan.acting(WEIGHTS)[0].unit.content
        part = cut_rows(whole, 2, 5)
        assert isinstance(part, Projected)
        base = base_of((8, 6))
        assert torch.allclose(part.update(base[2:5].clone()), whole.update(base.clone())[2:5], atol=1e-6)


# --- average ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("content", "style"), [("lora", "lora"), *((kind, "loha") for kind in KINDS)])
def test_average_is_klora_averaged_over_the_steps(content: str, style: str, shape: tuple[int, ...]) -> None:
    given = {"alpha": 1.9, "beta": 0.15, "balance": 0.2}
    average, _ = planned(content, style, shape, method="average", **given)
    klora, _ = planned(content, style, shape, **given)
    masks, base = klora.table(30)[0].tolist(), base_of(shape)
    c, s = updates(content, style, shape, base)
    wanted = sum(WEIGHTS[0] * c if mask == 1 else WEIGHTS[1] * s for mask in masks) / 30
    assert 0 < masks.count(1) < 30
    assert torch.allclose(total(average.acting(WEIGHTS)[0], base), wanted, atol=1e-5, rtol=1e-5)
    assert set(average.table(30)[0].tolist()) == {3}


@pytest.mark.parametrize("beta", [0.1, 0.9, 1.0, 1.1, 3.0])
def test_average_of_one_moment_is_klora(beta: float) -> None:
    pair = as_pair(random_layers(1), random_layers(2))
    one, other = (
        make_plan(pair, Library().measure(pair, s, CPU), s, 1)
        for s in (Settings(method="average", beta=beta), Settings(beta=beta))
    )
    shares = [acting.weights for acting in one.acting((0.8, 0.5))]
    assert shares == [(0.8, 0.0) if mask == 1 else (0.0, 0.5) for mask in other.table(1)[:, 0].tolist()]


# --- ties ---


def by_hand(updates: tuple[Tensor, Tensor], density: float) -> Tensor:
    kept = []
    for x in updates:
        size = x.abs().flatten().sort(descending=True).values[round(density * x.numel()) - 1]
        kept.append(torch.where(x.abs() >= size, x, 0.0))
    out = torch.zeros_like(kept[0])
    for i, (a, b) in enumerate(zip(*(x.flatten().tolist() for x in kept))):
        agree = [x for x in (a, b) if x * (a + b) > 0]
        out.view(-1)[i] = sum(agree) / len(agree) if agree else 0.0
    return out


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("content", "style"), [("lora", "lora"), *((kind, "lora with bias") for kind in KINDS)])
def test_ties_trims_elects_and_takes_the_mean(content: str, style: str, shape: tuple[int, ...], density: float) -> None:
    plan, _ = planned(content, style, shape, method="ties", density=density)
    (acting,) = plan.acting(WEIGHTS)
    base = base_of(shape)
    c, s = updates(content, style, shape, base)
    wanted = by_hand((WEIGHTS[0] * c, WEIGHTS[1] * s), density)
    assert torch.allclose(total(acting, base), wanted, atol=2e-5, rtol=1e-4)
    assert isinstance(acting.unit.content, Elected) and acting.unit.content.merges_only and acting.unit.style is None
    if style == "lora with bias":
        own = KINDS[content](shape, 40)[0].bias
        bias = WEIGHTS[1] * KINDS[style](shape, 60)[0].bias + (0 if own is None else WEIGHTS[0] * own)
        assert torch.allclose(acting.unit.content.bias, bias)


def test_ties_with_one_weight_zero_is_the_other_lora_trimmed() -> None:
    plan, unit = planned("lora", "loha", (8, 6), method="ties", density=1.0)
    got = total(plan.acting((0.0, 0.7))[0], base_of((8, 6)))
    assert torch.allclose(got, 0.7 * unit.style.dense().double(), atol=1e-6)


# --- what is not decided ---


@pytest.mark.parametrize("method", ["np", "average", "ties"])
def test_layers_of_one_lora_and_those_left_out_act_as_they_are(method: str) -> None:
    content, style = random_layers(1), random_layers(2, rank=3)
    only = next(iter(ATTENTION))
    del style[only]
    pair, settings = as_pair(content, style), Settings(method=method, layers="attention")
    plan = make_plan(pair, Library().measure(pair, settings, CPU), settings, 30)
    for unit, acting in zip(pair.units, plan.acting(WEIGHTS)):
        changed = unit.name in ATTENTION and unit.name != only
        assert (acting == Acting(unit, WEIGHTS)) == (not changed)


@pytest.mark.parametrize("method", ["klora", "direct", "switch", "content", "est", "blora"])
def test_methods_that_only_choose_leave_every_module_as_it_is(method: str) -> None:
    pair = as_pair(random_layers(1), random_layers(2))
    plan = make_plan(pair, Library().measure(pair, Settings(), CPU), Settings(), 30)
    acting = replace(plan, method=method).acting(WEIGHTS)
    assert acting == [Acting(unit, WEIGHTS) for unit in pair.units]


def test_directions_of_a_style_without_factors_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = Unit("x.attn1.to_q", KINDS["lora"]((8, 6), 1)[0], DENSE["loha"]((8, 6), 2)[0])
    pair = Pair(as_file(random_layers(1), "one"), as_file(random_layers(2), "two"), (unit,), ())
    library, settings = Library(), Settings(method="np")
    first = library.measure(pair, settings, CPU)
    monkeypatch.setattr("klora_lib.rule.combiners.find_leading", lambda *_: pytest.fail("it was decomposed twice"))
    assert library.measure(pair, settings, CPU).directions[0] is first.directions[0]
    make_plan(pair, first, settings, 30).acting(WEIGHTS)


ZERO_STYLES = {
    "full": {"diff": torch.zeros(8, 32)},
    "square": {"diff": torch.zeros(8, 8)},
    "lokr": {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.zeros(4, 16)},
    "loha": {"hada_w1_a": torch.ones(8, 4), "hada_w1_b": torch.ones(4, 32), "hada_w2_a": torch.zeros(8, 4),
             "hada_w2_b": torch.ones(4, 32)},
}  # fmt: skip


@pytest.mark.parametrize("kind", ZERO_STYLES)
def test_np_leaves_the_content_whole_where_the_style_is_zero(kind: str) -> None:
    one, two = (f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(2))
    columns = 8 if kind == "square" else 32
    content = {f"{name}.lora_{w}.weight": rand(*shape, seed=i) for i, name in enumerate((one, two))
               for w, shape in (("A", (2, columns)), ("B", (8, 2)))}  # fmt: skip
    style = {f"{one}.{word}": tensor for word, tensor in ZERO_STYLES[kind].items()}
    style |= {f"{two}.diff": rand(8, columns, seed=7)}
    pair = make_pair(lora_file(content, "c"), lora_file(style, "s"))
    settings = Settings(method="np", mu=1e9)
    plan = make_plan(pair, Library().measure(pair, settings, torch.device("cpu")), settings, 4)
    acting = {acting.unit.name: acting.unit.content for acting in plan.acting((1.0, 1.0))}
    got = acting["transformer_blocks.0.attn.to_q"]
    assert got is not None
    assert torch.allclose(got.dense(), content[f"{one}.lora_B.weight"] @ content[f"{one}.lora_A.weight"], atol=1e-6)
