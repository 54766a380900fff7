"""Theorem: every unit acts on its own layer with its own weights, or is reported; a misfit is refused with facts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from klora_lib.engine.fit import place_units
from klora_lib.engine.session import Session
from klora_lib.engine.site import Site
from klora_lib.errors import PairError
from klora_lib.lora.file import lora_file
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.scoring import score_units
from klora_lib.settings import Settings

from .cases import CPU, make_layer, rand, same, snapshot
from .stack import CONTENT_ONLY, NAMES, NORM, STYLE_ONLY, make_file, make_sites, make_stack

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def planned(pair: Pair, **settings: str) -> Plan:
    return make_plan(pair, score_units(pair.units, "auto", CPU), Settings(**settings), 4)


def make() -> Pair:
    return make_pair(
        make_file("subject", 1, [n for n in NAMES if n != STYLE_ONLY]),
        make_file("style", 2, [n for n in NAMES if n != CONTENT_ONLY]),
    )


def low_rank(name: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors of one module a layer; ``shapes``: of ΔW, by layer with _ for dots."""
    tensors = {}
    for i, (layer, (out, fan_in, *window)) in enumerate(shapes.items()):
        tensors[f"unet.{layer}.lora_up.weight"] = rand(out, 2, *(1 for _ in window), seed=i)
        tensors[f"unet.{layer}.lora_down.weight"] = rand(2, fan_in, *window, seed=i + 1)
    return tensors


def pair_of(shapes: dict[str, tuple[int, ...]], **extra: Tensor) -> Pair:
    one = lora_file(low_rank("subject", **shapes) | extra, "subject", "1")
    return make_pair(one, lora_file(low_rank("style", **shapes), "style", "2"))


def test_every_unit_is_placed_with_its_row_its_site_and_its_weights() -> None:
    pair, sites = make(), make_sites(make_stack())
    plan = planned(pair)
    placed, missing = place_units(plan, pair, sites, (0.7, -1.0), "tiny")
    assert missing == []
    assert [p.site for p in placed] == [sites[u.name] for u in (*pair.units, *pair.added)]
    assert [p.row for p in placed] == [*range(len(pair.units)), None]
    for unit, p in zip((*pair.units, *pair.added), placed):
        for delta, weighted, weight in ((unit.content, p.deltas.content, 0.7), (unit.style, p.deltas.style, -1.0)):
            assert (weighted is None) == (delta is None)
            assert weighted is None or (weighted.delta is delta and weighted.weight == weight)


@pytest.mark.parametrize(
    ("settings", "mask"),
    [({}, 3), ({"method": "content"}, 1), ({"method": "style"}, 2), ({"method": "direct"}, 3), ({"layers": "attention"}, 3),
     ({"layers": "attention-only"}, 0)],
)  # fmt: skip
def test_norms_are_added_as_the_method_leaves_them(settings: dict[str, str], mask: int) -> None:
    pair = make()
    placed, _ = place_units(planned(pair, **settings), pair, make_sites(make_stack()), (1, 1), "tiny")
    assert placed[-1].row is None and placed[-1].mask == mask


def test_units_missing_from_the_model_are_reported_and_the_others_placed() -> None:
    pair, stack = make(), make_stack()
    del stack["conv_in"], stack[NORM]
    placed, missing = place_units(planned(pair), pair, make_sites(stack), (1, 1), "tiny")
    assert missing == ["conv_in", NORM]
    assert len(placed) == len(pair.units) + len(pair.added) - 2
    rows = [p.row for p in placed]
    assert [pair.units[row].name for row in rows if row is not None] == [u.name for u in pair.units if u.name in stack]


def test_a_model_without_any_shared_layer_is_refused() -> None:
    pair, stack = make(), make_stack()
    with pytest.raises(PairError, match="none of the layers that both LoRAs touch is in 'tiny'"):
        place_units(
            planned(pair),
            pair,
            make_sites({n: m for n, m in stack.items() if n in (CONTENT_ONLY, STYLE_ONLY)}),
            (1, 1),
            "tiny",
        )


def test_without_a_shared_layer_each_lora_needs_one_in_the_model() -> None:
    """Also a LoRA of nothing but norms, which acts as every norm does."""
    halves = make_file("subject", 1, [Q], norm=False), make_file("style", 2, ["conv_in"], norm=False)
    pair, stack = make_pair(*halves), make_stack()
    placed, missing = place_units(planned(pair), pair, make_sites(stack), (1, 1), "tiny")
    assert [p.name for p in placed] == [u.name for u in pair.units] == [Q, "conv_in"] and not missing
    for gone, said in ((Q, "content: none of the 1 layers of 'subject' is in 'tiny'"), ("conv_in", "style: none of")):
        left = {name: module for name, module in stack.items() if name != gone}
        with pytest.raises(PairError, match=said):
            place_units(planned(pair), pair, make_sites(left), (1, 1), "tiny")
    norms = make_pair(halves[0], make_file("style", 2, []))
    placed, _ = place_units(planned(norms), norms, make_sites(stack), (1, 1), "tiny")
    assert [p.name for p in placed] == [Q, NORM]


def test_another_architecture_is_refused_by_layer_and_both_shapes() -> None:
    pair, stack = make(), make_stack()
    stack[Q] = nn.Linear(16, 8)
    with pytest.raises(PairError) as refusal:
        place_units(planned(pair), pair, make_sites(stack), (1, 1), "tiny")
    assert str(refusal.value) == (
        f"'subject' and 'style' are not made for the model of 'tiny': {Q} is 8×6 in the LoRAs, 8×16 in the model"
    )


def test_many_misfits_are_counted() -> None:
    pair, stack = make(), make_stack()
    wide = {n: nn.Linear(16, 8) if isinstance(m, nn.Linear) else nn.Conv2d(3, 6, 3) for n, m in stack.items() if n != NORM}
    with pytest.raises(PairError, match="3 layers more"):
        place_units(planned(pair), pair, make_sites(wide), (1, 1), "tiny")


@pytest.mark.parametrize(
    ("shape", "module"),
    [((8, 6), nn.Conv2d(6, 8, 1)), ((8, 6, 1, 1), nn.Linear(6, 8)), ((6, 4, 3, 3), nn.Conv2d(9, 6, 3)),
     ((6, 4, 3, 3), nn.Conv2d(4, 6, 3))],
)  # fmt: skip
def test_shapes_that_fit(shape: tuple[int, ...], module: nn.Module) -> None:
    pair = pair_of({"conv_in": shape})
    placed, missing = place_units(planned(pair), pair, {"conv_in": Site(module)}, (1, 1), "tiny")
    assert len(placed) == 1 and not missing


@pytest.mark.parametrize(
    ("shape", "module"),
    [((6, 4, 3, 3), nn.Conv2d(9, 6, 1)), ((6, 4, 3, 3), nn.Conv2d(8, 5, 3)), ((6, 3, 3, 3), nn.Conv2d(9, 6, 3)),
     ((6, 9, 3, 3), nn.Conv2d(4, 6, 3)), ((8, 6), nn.Linear(8, 6)), ((8, 6), nn.Conv2d(6, 8, 3))],
)  # fmt: skip
def test_shapes_that_do_not_fit(shape: tuple[int, ...], module: nn.Module) -> None:
    pair = pair_of({"conv_in": shape})
    with pytest.raises(PairError, match="conv_in is .* in the LoRAs, .* in the model"):
        place_units(planned(pair), pair, {"conv_in": Site(module)}, (1, 1), "tiny")


WIDENED = {  # layer: shape in the LoRAs, the layer of a model that takes further channels
    "conv_in of an inpainting UNet": ("conv_in", (6, 4, 3, 3), nn.Conv2d(9, 6, 3, padding=1)),
    "conv_in of InstructPix2Pix": ("conv_in", (6, 4, 3, 3), nn.Conv2d(8, 6, 3, padding=1)),
    "conv_in of a depth UNet": ("conv_in", (6, 4, 3, 3), nn.Conv2d(5, 6, 3, padding=1)),
    "conv_in, its kernel unknown": ("conv_in", (6, 36), nn.Conv2d(9, 6, 3, padding=1)),
    "x_embedder of Flux Control": ("x_embedder", (6, 16), nn.Linear(32, 6)),
    "x_embedder of Flux Fill": ("x_embedder", (6, 16), nn.Linear(96, 6)),
    "pos_embed.proj of an SD3 control model": ("pos_embed.proj", (6, 4, 2, 2), nn.Conv2d(9, 6, 2, stride=2)),
}


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("what", WIDENED)
def test_a_wider_first_layer_has_the_update_in_its_first_channels(what: str, engine: str) -> None:
    """W + ΔW padded with zeros, in both engines; all further channels stay as they are."""
    name, shape, module = WIDENED[what]
    pair, module = pair_of({name: shape, Q: (8, 6)}), module.requires_grad_(False)
    plan = planned(pair, method="content")
    before, x = snapshot(module), rand(2, module.weight.shape[1], *(6, 6)[: module.weight.dim() - 2], seed=5)
    change = next(u.content.dense() for u in pair.units if u.name == name and u.content)
    want = module.weight.clone()
    want.flatten(1)[:, : change.shape[1]] += change
    expected = torch.func.functional_call(module, {"weight": want}, (x,))
    sites = {name: Site(module), Q: Site(make_layer("linear without bias"))}
    placed, missing = place_units(plan, pair, sites, (1, 1), "tiny")
    assert not missing
    session = Session(plan, placed, engine, CPU)
    session.advance(0.0)
    torch.testing.assert_close(module(x), expected)
    session.close()
    assert same(module, before)


@pytest.mark.parametrize(
    ("name", "shape", "module"),
    [(Q, (8, 6), nn.Linear(12, 8)), ("mid_block.resnets.0.conv1", (6, 4, 3, 3), nn.Conv2d(9, 6, 3)),
     ("x_embedder", (6, 16), nn.Linear(32, 8)), ("x_embedder", (6, 16), nn.Linear(8, 6)),
     ("x_embedder", (6, 16), nn.Conv2d(32, 6, 3)), ("pos_embed.proj", (6, 4, 2, 2), nn.Conv2d(9, 6, 1))],
)  # fmt: skip
def test_only_a_wider_first_layer_may_be_of_another_shape(name: str, shape: tuple[int, ...], module: nn.Module) -> None:
    pair = pair_of({name: shape})
    with pytest.raises(PairError, match=f"{name} is .* in the LoRAs, .* in the model"):
        place_units(planned(pair), pair, {name: Site(module)}, (1, 1), "tiny")


def test_rows_of_a_fused_weight_have_the_shape_of_their_part() -> None:
    name = "transformer_blocks.0.attn.to_q"
    pair = pair_of({name: (6, 6)})
    placed, _ = place_units(planned(pair), pair, {name: Site(nn.Linear(6, 18), (0, 6))}, (1, 1), "tiny")
    assert placed[0].site.shape == (6, 6)
    with pytest.raises(PairError, match=f"{name} is 6×6 in the LoRAs, 5×6 in the model"):
        place_units(planned(pair), pair, {name: Site(nn.Linear(6, 18), (0, 5))}, (1, 1), "tiny")


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("layer", ["conv 3×3", "linear"])
def test_a_bias_alone_on_a_layer_with_a_kernel_fits(layer: str, engine: str) -> None:
    """Some trainers write diff_b for a layer and nothing else."""
    module = make_layer(layer)
    out, bias = module.weight.shape[0], module.bias.clone()
    name = "mid_block.resnets.0.conv1"
    added = {f"unet.{name}.diff_b": torch.ones(out)}
    pair = pair_of({Q: (8, 6)}, **added)
    q = make_layer("linear without bias")
    x = torch.zeros(1, *module.weight.shape[1:])
    placed, missing = place_units(planned(pair), pair, {Q: Site(q), name: Site(module)}, (0.5, 1), "tiny")
    assert not missing
    before, plain = snapshot(module), module(x)
    session = Session(planned(pair), placed, engine, CPU)
    session.advance(0.0)
    assert torch.allclose(module(x), plain + 0.5)
    session.close()
    assert same(module, before) and torch.equal(module.bias, bias)


def test_nothing_is_written_by_placing() -> None:
    pair, stack = make(), make_stack()
    before = {n: snapshot(m) for n, m in stack.items()}
    place_units(planned(pair), pair, make_sites(stack), (1, 1), "tiny")
    assert all(same(m, before[n]) for n, m in stack.items())
