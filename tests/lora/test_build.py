"""Theorem: any tensors make a module whose verbs work, or one sentence with the layer and the facts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.errors import LoraFileError
from klora_lib.lora.build import COMMON, WORDS, build_delta
from klora_lib.rule.pairing import sizes_agree

from .test_deltas import LAYER, rand


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"lora_up.weight": rand(4, 2)}, "has lora_up.weight but no lora_down.weight"),
        ({"lora_down.weight": rand(2, 4), "alpha": rand(1)}, "has lora_down.weight but no lora_up.weight"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": rand(3, 5)},
         "has shapes that do not fit: lora_up.weight is 4×2, lora_down.weight is 3×5"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": rand(2, 5, 3)},
         "has a lora_down.weight of 3 dimensions (2×5×3) where 2 or 4 are expected"),
        ({"lora_up.weight": rand(4, 2, 3, 3), "lora_down.weight": rand(2, 5, 1, 1)},
         "has a kernel in lora_up.weight (4×2×3×3), which must be 1×1"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": torch.empty(2, 0)}, "has an empty lora_down.weight (2×0)"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": torch.full((2, 5), float("nan"))},
         "has NaN or infinity in lora_down.weight"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": rand(2, 5), "alpha": torch.tensor(float("inf"))},
         "has NaN or infinity in alpha"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": rand(2, 5), "alpha": rand(2)},
         "has 2 numbers as alpha where one is expected"),
        ({"lora_up.weight": torch.ones(4, 2, dtype=torch.int8), "lora_down.weight": rand(2, 5)},
         "stores lora_up.weight as int8, not as floating-point numbers"),
        ({"diff": rand(4, 5), "diff_b": rand(3)}, "has a diff_b of 3 for 4 outputs"),
        ({"alpha": torch.tensor(1.0)}, "has alpha but no weights"),
        ({"hada_w1_a": rand(4, 2), "hada_w1_b": rand(2, 5), "hada_w2_a": rand(4, 2)},
         "has hada_w1_a and hada_w1_b and hada_w2_a but no hada_w2_b"),
        ({"lokr_w1": rand(4, 2), "lokr_w2_a": rand(4, 2)}, "has lokr_w1 and lokr_w2_a but no lokr_w2_b"),
        ({"lokr_w2": rand(4, 2)}, "has lokr_w2 but no lokr_w1_a or lokr_w1_b"),
        ({"lora_up.weight": rand(4, 2), "lora_down.weight": rand(2, 5), "dora_scale": rand(1, 7)},
         "has a dora_scale of 1×7, which fits neither rows nor columns of 4×5"),
        ({"w_norm": rand(4), "dora_scale": rand(4)}, "has a dora_scale, which a norm or a bias cannot have"),
        ({"w_norm": rand(4), "b_norm": rand(5)}, "has shapes that do not fit: w_norm is 4, b_norm is 5"),
        ({"oft_blocks": rand(4, 2, 3)}, "has oft_blocks of 4×2×3, which are no square blocks"),
        ({"oft_blocks": rand(3, 3, 2, 2)}, "has oft_blocks of 3×3×2×2, which make no butterfly"),
        ({"oft_blocks": rand(4, 2, 2), "rescale": rand(7, 1)}, "has a rescale of 7×1 for 8 outputs"),
        ({"oft_blocks": rand(4, 2, 2), "dora_scale": rand(8, 1)},
         "has a dora_scale, which is not read together with OFT"),
        ({"oft_blocks.0": rand(4, 2, 2), "oft_blocks.2": rand(4, 2, 2)}, "has parts of an OFT but no oft_blocks.1"),
        ({"oft_diag": rand(4, 2)}, "has an oft_diag of 4×2, which are no square blocks"),
        ({"oft_R": rand(4, 4)}, "has an oft_R of 4×4, which are no triangles"),
        ({"boft_R": rand(2, 3, 2, 2)}, "has a boft_R of 2×3×2×2, which make no butterfly"),
        ({"boft_s": rand(4, 1)}, "has boft_s but no weights"),
        ({"oft_blocks": torch.tensor([[[0.0, 3e38], [-3e38, 0.0]]])}, "has numbers too large for fp32"),
        ({"oft_R": 1e20 * rand(2, 3)}, "has numbers too large for fp32"),
        ({"ia3_l": rand(1, 4, 1, 1)},
         "has an ia3_l of 1×4×1×1, which the adapter_config.json beside the file would explain"),
        ({"weight": rand(4)}, "is of a type that is not read (weight)"),
        ({"oft_blocks": rand(4, 2, 2), "oft_R": rand(4, 1)}, "is of a type that is not read (oft_R + oft_blocks)"),
        ({"diff": rand(4, 2), "surprise": rand(1)}, "is of a type that is not read (diff + surprise)"),
    ],
)  # fmt: skip
def test_each_refusal_names_the_layer_and_the_facts(parts: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(LoraFileError) as refusal:
        build_delta(LAYER, parts)
    assert str(refusal.value) == f"{LAYER} {sentence}"


shapes = st.lists(st.sampled_from([1, 2, 4]), max_size=4)
words = st.sampled_from(sorted(WORDS)).flatmap(
    lambda name: st.sets(st.sampled_from(sorted(WORDS[name] | COMMON)), min_size=1)
)


@settings(max_examples=150, deadline=None)
@given(st.data(), words)
def test_any_shapes_make_a_module_or_a_sentence(data: st.DataObject, some: set[str]) -> None:
    parts = {word: rand(*([] if word in ("alpha", "scale") else data.draw(shapes, word))) for word in sorted(some)}
    try:
        delta = build_delta(LAYER, parts)
    except LoraFileError as refusal:
        assert str(refusal).startswith(LAYER)
        return
    flat = delta.shape[0], math.prod(delta.shape[1:])
    if delta.relative:
        weight = 2, 4, 2, 2  # of a layer that it may or may not be for
        if delta.accepts(weight) and sizes_agree(flat, (2, 16)):
            assert delta.update(torch.ones(2, 16)).shape == (2, 16)
        return
    assert delta.dense().shape == flat
    assert delta.update(torch.ones(flat)).shape == flat
    assert delta.bias is None or delta.bias.shape == flat[:1]
