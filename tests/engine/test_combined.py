"""Theorems: what a combiner made acts on every layer of a model by either engine, as its dense matrix; closing undoes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.fit import make_weight_reader, place_units
from klora_lib.engine.fusion import Fusion, Target
from klora_lib.engine.session import Session
from klora_lib.engine.site import Site
from klora_lib.errors import HostError, PairError
from klora_lib.rule.cache import Library
from klora_lib.rule.combiners import Acting
from klora_lib.rule.pairing import Pair, Unit
from klora_lib.rule.plan import make_plan
from klora_lib.settings import Settings

from ..pairs import as_file, random_layers
from .cases import CPU, KINDS, LAYERS, flat, hooks, make_layer, same, site_of, snapshot
from .storages import STORAGES
from .storages import site_of as packed_site
from .test_bypass import answer, rand

NAME, WEIGHTS = "x.attn1.to_q", (0.8, -0.6)
FIRST = {"inpainting": "conv_in", "wider linear": "x_embedder"}  # only a first layer may be wider in the model
COMBINING = ("np", "average", "ties")


def prepared(shape: tuple[int, ...], kinds: tuple[str, str], method: str, sites: dict[str, Site], engine: str = "auto"):
    """A session on ``sites`` and what acts on the layer."""
    (name,) = sites
    unit = Unit(name, KINDS[kinds[0]](shape, 40)[0], KINDS[kinds[1]](shape, 60)[0])
    return session_of(unit, method, sites, engine)


def session_of(unit: Unit, method: str, sites: dict[str, Site], engine: str = "auto") -> tuple[Session, Acting]:
    pair = Pair(as_file(random_layers(1), "one"), as_file(random_layers(2), "two"), (unit,), ())
    settings = Settings(method=method, beta=0.7)
    plan = make_plan(pair, Library().measure(pair, settings, CPU), settings, 8)
    placed, _ = place_units(plan, pair, sites, WEIGHTS, "tiny")
    return Session(plan, placed, engine, CPU), plan.acting(WEIGHTS)[0]


def added(acting: Acting, base: Tensor) -> Tensor:
    """Σ w·Δ(base) in fp64, [out, columns]."""
    pairs = zip((acting.unit.content, acting.unit.style), acting.weights)
    return sum((w * delta.update(base.float()).double() for delta, w in pairs if delta is not None), torch.zeros(1).double())


def expected(acting: Acting, site: Site, weight: Tensor) -> Tensor:
    want = weight.double().clone()
    part = site.take_part(want)
    columns = flat(acting.unit.shape)[1]
    rows = part.reshape(part.shape[0], -1).clone()
    rows[:, :columns] += added(acting, site.take_part(weight).reshape(part.shape[0], -1)[:, :columns])
    part.copy_(rows.reshape(part.shape))
    return want


@pytest.mark.parametrize(
    "kinds", [("lora", "lora"), ("loha", "lora"), ("lora with bias", "full"), ("dora by output", "lokr")], ids="-".join
)
@pytest.mark.parametrize("layer", [name for name in LAYERS if "without" not in name and "1×1" not in name])
@pytest.mark.parametrize(("method", "engine"), [*((m, "merge") for m in COMBINING), ("np", "bypass"), ("average", "bypass")])
def test_a_layer_carries_the_dense_matrix(method: str, engine: str, layer: str, kinds: tuple[str, str]) -> None:
    module = make_layer(layer)
    site, x, bits = site_of(layer, module), rand(*LAYERS[layer].x, seed=7), snapshot(module)
    before, bias, plain = module.weight.clone(), module.bias.clone(), module(x)
    session, acting = prepared(LAYERS[layer].shape, kinds, method, {FIRST.get(layer, NAME): site}, engine)
    want = expected(acting, site, before)
    wanted_bias = bias.double().clone()
    for delta, w in zip((acting.unit.content, acting.unit.style), acting.weights):
        if delta is not None and delta.bias is not None:
            site.take_part(wanted_bias).add_(w * delta.bias.double())
    for t in range(8):
        session.advance(t / 8)
        assert torch.allclose(module(x).double(), answer(module, want, wanted_bias, x), atol=3e-5, rtol=1e-4)
    assert session.switches == 1, "it acts the same at every step"
    if engine == "merge":
        assert torch.allclose(module.weight.double(), want, atol=1e-6, rtol=1e-5)
    else:
        assert torch.equal(module.weight, before)
    session.close()
    assert same(module, bits) and hooks(module) == 0 and torch.equal(module(x), plain)


@pytest.mark.parametrize("method", ["est", "np", "klora"])
def test_a_pair_that_multiplies_weights_is_measured_again_by_what_its_method_compares(method: str) -> None:
    """Before a pass, as the weights may have changed since the job was made ready."""
    module = make_layer("linear")
    unit = Unit(NAME, KINDS["ia3"]((8, 6), 40)[0], KINDS["loha"]((8, 6), 60)[0])
    pair = Pair(as_file(random_layers(1), "one"), as_file(random_layers(2), "two"), (unit,), ())
    settings, target = Settings(method=method), Target({NAME: Site(module)}, "tiny", CPU, 0)
    read = make_weight_reader(target.sites)
    fusion = Fusion(pair, Library().measure(pair, settings, CPU, weights=read), settings)
    with torch.no_grad():
        module.weight.mul_(3)
    again = fusion.score_again(target)
    fresh = Library().measure(pair, settings, CPU, weights=read)
    for name in ("k", "content_topk", "style_topk", "content_abs", "style_abs", "squared"):
        assert getattr(again.scores, name) == getattr(fresh, name)
    assert again.scores.directions == fusion.scores.directions and bool(fresh.directions) == (method == "np")
    assert float(again.scores.content_topk) > 2 * float(fusion.scores.content_topk)


@pytest.mark.parametrize("method", COMBINING)
def test_a_model_with_the_layer_in_parts_carries_the_rows_of_the_whole(method: str) -> None:
    whole = "transformer_blocks.0.attn.to_qkv"
    unit = Unit(whole, *(KINDS["lora"]((18, 6), seed)[0] for seed in (40, 60)))
    parts = {f"transformer_blocks.0.attn.{n}": nn.Linear(6, 6).requires_grad_(False) for n in ("to_q", "to_k", "to_v")}
    before = torch.cat([m.weight.clone() for m in parts.values()])
    session, acting = session_of(unit, method, {name: Site(m) for name, m in parts.items()}, "merge")
    session.advance(0.0)
    after = torch.cat([m.weight for m in parts.values()]).double()
    assert torch.allclose(after, before.double() + added(acting, before), atol=1e-6)
    session.close()
    assert torch.equal(torch.cat([m.weight for m in parts.values()]), before)


def test_ties_cannot_act_in_parts_where_a_part_asks_for_the_weight_of_the_whole() -> None:
    whole = "transformer_blocks.0.attn.to_qkv"
    unit = Unit(whole, KINDS["dora by output"]((18, 6), 40)[0], KINDS["lora"]((18, 6), 60)[0])
    parts = {f"transformer_blocks.0.attn.{n}": Site(nn.Linear(6, 6)) for n in ("to_q", "to_k", "to_v")}
    with pytest.raises(PairError, match="ties of a DoRA or its like in a fused layer cannot act on this model"):
        session_of(unit, "ties", parts)


@pytest.mark.parametrize("storage", STORAGES)
def test_ties_is_refused_where_a_weight_cannot_be_written(storage: str) -> None:
    """Before anything is changed; what stays low-rank acts beside the weight."""
    module = STORAGES[storage].make()
    site = packed_site(module)
    shape = site.shape
    if "first forward" in storage:
        module(rand(2, shape[1], seed=1))
    with pytest.raises(HostError, match=f"method: .*cannot act beside them, but {NAME} cannot be written where it is"):
        prepared(shape, ("lora", "lora"), "ties", {NAME: site})
    session, _ = prepared(shape, ("lora", "lora"), "np", {NAME: site})
    session.advance(0.0)
    assert hooks(module) == 1
    session.close()
    assert hooks(module) == 0


def test_ties_is_refused_with_the_engine_bypass_also_where_rows_are_taken() -> None:
    whole = "transformer_blocks.0.attn.to_qkv"
    unit = Unit(whole, *(KINDS["lora"]((18, 6), seed)[0] for seed in (40, 60)))
    parts = {f"transformer_blocks.0.attn.{n}": Site(nn.Linear(6, 6)) for n in ("to_q", "to_k", "to_v")}
    for sites in (parts, {whole: Site(nn.Linear(6, 18))}):
        with pytest.raises(HostError, match="method: .* but bypass is chosen; choose another"):
            session_of(unit, "ties", sites, "bypass")
