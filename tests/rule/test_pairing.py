"""Theorems: a pair has one unit a layer, at the finest granularity both files share; misfits are refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.errors import KLoraError, PairError
from klora_lib.lora.file import lora_file
from klora_lib.lora.keys import list_members
from klora_lib.rule.pairing import Pair, Unit, make_pair

from ..dialects import split
from ..pairs import ATTENTION, SHAPES, Layers, as_file, as_pair, dense, random_layers

few = settings(max_examples=25)
WIDTH, MLP = 8, 20
FUSED = {  # layer: rows
    "transformer_blocks.3.attn.to_qkv": 3 * WIDTH,
    "transformer_blocks.3.attn.to_added_qkv": 3 * WIDTH,
    "transformer_blocks.3.attn2.to_qkv": 3 * WIDTH,
    "single_transformer_blocks.7.attn.to_qkv_mlp_proj": 3 * WIDTH + MLP,
    "layers.2.attention.to_qkv": 3 * WIDTH,
}


some_layers = st.sets(st.sampled_from(list(SHAPES)), min_size=1)


def heights(whole: str) -> list[int]:
    """Rows of the members of ``whole``: q, k and v are as tall as the layer is wide."""
    return [WIDTH] * 3 + [MLP] * (len(list_members(whole)) - 3)


def by_name(pair: Pair) -> dict[str, Unit]:
    assert len({u.name for u in pair.units}) == len(pair.units)
    return {u.name: u for u in pair.units}


def products(unit: Unit) -> tuple[Tensor, Tensor]:
    assert unit.content is not None and unit.style is not None
    return unit.content.dense(), unit.style.dense()


# --- one unit a layer ---


@few
@given(of_content=some_layers, of_style=some_layers)
def test_units_are_the_union_of_the_layers(of_content: set[str], of_style: set[str]) -> None:
    content, style = (
        random_layers(seed, {n: s for n, s in SHAPES.items() if n in layers})
        for seed, layers in enumerate((of_content, of_style))
    )
    pair = as_pair(content, style)
    units = by_name(pair)
    assert set(units) == of_content | of_style and pair.shared == bool(of_content & of_style)
    for name, unit in units.items():
        assert (unit.content is not None, unit.style is not None) == (name in of_content, name in of_style)
        assert unit.shared == (name in of_content & of_style)
        assert unit.attention == (name in ATTENTION)
        assert unit.elements == torch.Size(SHAPES[name]).numel()


def test_the_order_of_units_does_not_depend_on_the_order_in_the_files() -> None:
    forth, back = random_layers(1), random_layers(2)
    names = [u.name for u in as_pair(forth, back).units]
    again = as_pair(dict(reversed(forth.items())), dict(reversed(back.items())))
    assert [u.name for u in again.units] == names


def test_norms_and_biases_are_added_not_chosen() -> None:
    norm, other = "mid_block.resnets.0.norm1", "mid_block.resnets.0.norm2"
    extra = {f"unet.{norm}.w_norm": torch.ones(4), f"unet.{norm}.b_norm": torch.ones(4)}
    more = {f"unet.{norm}.w_norm": torch.zeros(4), f"unet.{other}.b_norm": torch.ones(4)}
    pair = make_pair(as_file(random_layers(1), "subject", extra), as_file(random_layers(2), "painter", more))
    assert set(by_name(pair)) == set(SHAPES)
    added = {u.name: (u.content is not None, u.style is not None) for u in pair.added}
    assert added == {norm: (True, True), other: (False, True)}


# --- fused against split ---


@pytest.mark.parametrize("whole", FUSED)
@pytest.mark.parametrize("fused", ["content", "style"])
def test_where_one_file_is_fused_the_unit_is_the_fused_weight(whole: str, fused: str) -> None:
    one, two = (random_layers(seed, {whole: (FUSED[whole], WIDTH)}) for seed in (1, 2))
    parts = split(two)
    assert list(parts) == list(list_members(whole))
    pair = as_pair(one, parts) if fused == "content" else as_pair(parts, one)
    (unit,) = pair.units
    got = products(unit) if fused == "content" else products(unit)[::-1]
    assert (unit.name, unit.shape) == (whole, (FUSED[whole], WIDTH))
    assert torch.allclose(got[0].double(), dense(one[whole]), atol=1e-5)
    assert torch.allclose(got[1].double(), dense(two[whole]), atol=1e-5)


@pytest.mark.parametrize("whole", FUSED)
def test_where_both_files_are_split_so_are_the_units(whole: str) -> None:
    one, two = (split(random_layers(seed, {whole: (FUSED[whole], WIDTH)})) for seed in (1, 2))
    assert set(by_name(as_pair(one, two))) == set(list_members(whole))


@pytest.mark.parametrize("whole", FUSED)
def test_where_both_files_are_fused_so_is_the_unit(whole: str) -> None:
    one, two = (random_layers(seed, {whole: (FUSED[whole], WIDTH)}) for seed in (1, 2))
    assert set(by_name(as_pair(one, two))) == {whole}


@pytest.mark.parametrize("whole", FUSED)
@given(data=st.data())
@few
def test_absent_members_are_rows_of_zeros(whole: str, data: st.DataObject) -> None:
    names = list_members(whole)
    kept = data.draw(st.sets(st.sampled_from(names), min_size=1))
    fused = random_layers(1, {whole: (FUSED[whole], WIDTH)})
    parts = random_layers(2, {n: (h, WIDTH) for n, h in zip(names, heights(whole)) if n in kept})
    (unit,) = as_pair(fused, parts).units
    slabs = products(unit)[1].split(heights(whole))
    for name, slab in zip(names, slabs):
        expected = dense(parts[name]) if name in kept else torch.zeros_like(slab).double()
        assert torch.allclose(slab.double(), expected, atol=1e-5)
    assert unit.style is not None and unit.style.rank == 2 * len(kept)


def test_a_fused_layer_that_only_one_file_has_stays_as_the_file_has_it() -> None:
    common = {"transformer_blocks.0.attn.to_out.0": (WIDTH, WIDTH)}
    fused = {"transformer_blocks.3.attn.to_qkv": (3 * WIDTH, WIDTH)}
    other = {"transformer_blocks.4.attn.to_q": (WIDTH, WIDTH)}
    units = by_name(as_pair(random_layers(1, {**common, **fused}), random_layers(2, {**common, **other})))
    assert set(units) == {*common, *fused, *other}


# --- refusals ---


def refusal(content: Layers, style: Layers) -> str:
    with pytest.raises(KLoraError) as caught:
        as_pair(content, style)
    return str(caught.value)


@pytest.mark.parametrize("layer", SHAPES)
def test_two_shapes_of_one_layer_are_refused_with_the_layer_and_both_shapes(layer: str) -> None:
    other = {name: (n + 4, *rest) if name == layer else (n, *rest) for name, (n, *rest) in SHAPES.items()}
    said = refusal(random_layers(1), random_layers(2, other))
    for fact in ("'subject'", "'painter'", layer, "×".join(map(str, SHAPES[layer])), "×".join(map(str, other[layer]))):
        assert fact in said


def test_many_wrong_shapes_are_counted() -> None:
    said = refusal(random_layers(1), random_layers(2, {name: (n + 4, *rest) for name, (n, *rest) in SHAPES.items()}))
    assert sum(name + " is" in said for name in SHAPES) == 3
    assert f"and {len(SHAPES) - 3} layers more" in said


UNET = "up_blocks.0.attentions.0.transformer_blocks.0"
TWO_MODELS = {  # two files without a common layer -> what tells that they are for different models
    "a UNet and Flux": ({f"{UNET}.attn1.to_q": (12, 12)}, {"single_transformer_blocks.3.attn.to_q": (12, 12)},
                        "the denoiser is a UNet and a transformer like Flux or SD3"),
    "Flux and Z-Image": ({"transformer_blocks.3.attn.to_out.0": (12, 12)}, {"layers.3.attention.to_q": (12, 12)},
                         "a transformer like Flux or SD3 and a transformer like Z-Image or Lumina"),
    "Flux and SD3": ({"transformer_blocks.3.attn.to_q": (12, 12)}, {"transformer_blocks.4.attn.to_out.0": (8, 8)},
                     "the width of transformer_blocks is 12 and 8"),
    "Flux of single blocks and SD3": ({"single_transformer_blocks.3.attn.to_q": (12, 12)},
                                      {"transformer_blocks.4.attn.to_out.0": (8, 8)},
                                      "the width of transformer_blocks is 12 and 8"),
    "SD1.5 and SDXL": ({f"{UNET}.attn2.to_k": (12, 16)}, {f"{UNET}.attn2.to_v": (12, 20)},
                       "the width of the text is 16 and 20"),
    "two widths of a level": ({f"{UNET}.attn1.to_q": (12, 12)}, {f"{UNET}.attn1.to_k": (8, 8)},
                              "the width of up_blocks.0 is 12 and 8"),
}  # fmt: skip


@pytest.mark.parametrize("which", TWO_MODELS)
def test_no_layer_in_common_and_two_architectures_are_refused_with_an_example_of_each(which: str) -> None:
    one, two, what = TWO_MODELS[which]
    for content, style in ((one, two), (two, one)):
        said = refusal(random_layers(1, content), random_layers(2, style))
        for fact in ("'subject'", "'painter'", "no denoiser layer in common", *one, *two):
            assert fact in said
    assert what in refusal(random_layers(1, one), random_layers(2, two))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        # B-LoRA: SDXL's two blocks
        ({f"{UNET}.attn1.to_q": (12, 12)}, {f"{UNET.replace('attentions.0', 'attentions.1')}.attn1.to_q": (12, 12)}),
        ({f"{UNET}.attn1.to_q": (12, 12)}, {"down_blocks.1.resnets.0.conv1": (4, 8, 3, 3)}),
        ({"transformer_blocks.3.attn.to_q": (12, 12)}, {"single_transformer_blocks.3.proj_out": (12, 60)}),
        ({"x_embedder": (12, 16)}, {f"{UNET}.attn1.to_q": (12, 12)}),  # a name that tells nothing
    ],
)  # fmt: skip
def test_no_layer_in_common_is_a_pair_where_nothing_speaks_against_one_model(one: dict, two: dict) -> None:
    pair = as_pair(random_layers(1, one), random_layers(2, two))
    assert not pair.shared and {u.name for u in pair.units} == {*one, *two}


WRONG = {  # members and their rows -> shapes of parts that do not make the whole
    "one row too many": lambda parts: {n: (h + (i == 0), WIDTH) for i, (n, h) in enumerate(parts.items())},
    "two widths": lambda parts: {n: (h, WIDTH * (1 + (i == 0))) for i, (n, h) in enumerate(parts.items())},
    "another width": lambda parts: {n: (h, 2 * WIDTH) for n, h in parts.items()},
    "no room for the absent one": lambda parts: {n: (sum(parts.values()), WIDTH) for n in list(parts)[:-1]},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("whole", FUSED)
@pytest.mark.parametrize("fused", ["content", "style"])
def test_parts_that_do_not_make_the_fused_weight_are_refused_by_name(whole: str, fused: str, wrong: str) -> None:
    ours = random_layers(1, {whole: (FUSED[whole], WIDTH)})
    theirs = random_layers(2, WRONG[wrong](dict(zip(list_members(whole), heights(whole)))))
    said = refusal(ours, theirs) if fused == "content" else refusal(theirs, ours)
    assert whole in said or any(name in said for name in list_members(whole))


def test_a_pointwise_convolution_and_a_linear_layer_are_the_same_layer() -> None:
    name = "down_blocks.1.attentions.0.proj_in"
    pair = as_pair(random_layers(1, {name: (12, 10)}), random_layers(2, {name: (12, 10, 1, 1)}))
    (unit,) = pair.units
    assert [x.shape for x in products(unit)] == [(12, 10), (12, 10)]


def test_parts_of_a_fused_layer_whose_heights_no_file_tells_are_refused() -> None:
    """An IA3 on the input of a fused layer tells nothing of its rows, and of its parts the other file has one alone."""
    whole, part = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.transformer_blocks.0.attn.to_q"
    fused = {f"{whole}.weight": torch.full((8,), 0.3), f"{whole}.on_input": torch.tensor(True)}
    split = {f"{part}.weight": torch.full((8,), 0.3), f"{part}.on_input": torch.tensor(False)}
    with pytest.raises(PairError, match="do not tell how many rows of transformer_blocks.0.attn.to_qkv belong to each"):
        make_pair(lora_file(split, "split"), lora_file(fused, "fused"))
