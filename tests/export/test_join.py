"""Theorems of joining: types of numbers, and updates that have no two factors."""

from __future__ import annotations

import pytest
import torch

from klora_lib.errors import SettingsError
from klora_lib.export.bake import bake
from klora_lib.export.join import Product, join_updates
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import Lora
from klora_lib.lora.file import lora_file
from klora_lib.rule.pairing import make_pair

from ..dialects import dialect_tensors
from ..pairs import as_pair, random_layers
from .cases import ONE, assert_same, draw_pair, expected, find_dense, plan_pair, read_again

# --- numbers ---


@pytest.mark.parametrize(("one", "two", "kept"), [
    (torch.float16, torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.bfloat16, torch.float32), (torch.float32, torch.float16, torch.float32),
    (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float16), (torch.float64, torch.float64, torch.float32),
])  # fmt: skip
def test_the_type_is_the_wider_of_the_files(one: torch.dtype, two: torch.dtype, kept: torch.dtype) -> None:
    files = [
        lora_file({k: v.to(dtype) for k, v in dialect_tensors(random_layers(seed), "peft").items()}, str(seed), str(seed))
        for seed, dtype in enumerate((one, two))
    ]
    pair = make_pair(*files)
    plan = plan_pair(pair, method="direct")
    tensors = bake(pair, plan, plan.at(0), ONE).tensors
    assert {t.dtype for key, t in tensors.items() if not key.endswith("alpha")} == {kept}


def test_small_strengths_keep_their_digits_in_fp16() -> None:
    """up of 1e-6 has two digits in fp16; balanced with down it has all that fp16 has."""
    up, down = torch.randn(16, 2) * 1e-6, torch.randn(2, 16) * 8
    product = join_updates([(Lora(up, down, 0.5, (16, 16)), 0.25)])
    assert product is not None
    got = product.up.half().double() @ product.down.half().double()
    wanted = 0.125 * up.double() @ down.double()
    assert float((got - wanted).norm() / wanted.norm()) < 2e-3
    assert torch.allclose(product.up.double() @ product.down.double(), wanted, rtol=1e-5, atol=0)


def test_what_fp16_cannot_hold_is_refused() -> None:
    pair = as_pair(random_layers(0, strength=1e12), random_layers(1))
    plan = plan_pair(pair, method="direct")
    with pytest.raises(SettingsError, match=r"precision: fp16 cannot hold the numbers of \d+ tensors, lora_unet_"):
        bake(pair, plan, plan.at(0), ONE, precision="fp16")
    assert bake(pair, plan, plan.at(0), ONE, precision="fp32").rank == 4


# --- updates without two factors ---


def test_the_nearest_product_of_a_rank_and_what_it_loses() -> None:
    g = torch.Generator().manual_seed(3)
    dense = torch.randn(30, 40, generator=g) @ torch.diag(0.8 ** torch.arange(40.0))
    full = build_delta("conv_in", {"diff": dense})
    before = torch.random.get_rng_state()
    for rank in (1, 4, 12):
        product = join_updates([(full, 2.0)], rank)
        assert isinstance(product, Product) and product.rank == rank
        sizes = torch.linalg.svdvals(2 * dense.double())
        best = float(sizes[rank:].square().sum() / sizes.square().sum())
        lost = float((product.up @ product.down - 2 * dense).double().square().sum() / sizes.square().sum())
        assert lost == pytest.approx(product.lost, rel=1e-3) and best <= lost * 1.0001 <= best * 1.01
    assert torch.equal(before, torch.random.get_rng_state()), "the host's noise comes from there"


def test_ties_says_what_it_loses() -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair, method="ties", density=0.5)
    wanted = expected(plan, plan.at(0), (1.0, 1.0))
    baked = bake(pair, plan, plan.at(0), ONE)
    assert baked.rank <= 5
    assert len(baked.notes) == 1 and "of the change is lost there" in baked.notes[0]
    near, exact = read_again(baked), read_again(bake(pair, plan, plan.at(0), ONE, rank=64))
    for layer, dense in wanted.items():
        sizes = torch.linalg.svdvals(dense)
        best = float(sizes[5:].square().sum().sqrt())
        assert float((find_dense(near, layer) - dense).norm()) <= 1.02 * best + 1e-5 * float(dense.norm())
    assert_same(exact, wanted, 1e-4)


def test_full_differences_and_loha_become_low_rank() -> None:
    g = torch.Generator().manual_seed(5)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    hada = {f"hada_w{n}_{x}": torch.randn(12, 2, generator=g) if x == "a" else torch.randn(2, 12, generator=g)
            for n in "12" for x in "ab"}  # fmt: skip
    content = lora_file({f"{layer}.{word}": t for word, t in hada.items()} | {f"{layer}.alpha": torch.tensor(1.0)}, "c", "c")
    style = lora_file({f"{layer}.diff": torch.randn(12, 12, generator=g)}, "s", "s")
    pair = make_pair(content, style)
    plan = plan_pair(pair, method="direct")
    assert_same(read_again(bake(pair, plan, plan.at(0), ONE)), expected(plan, plan.at(0), (1.0, 1.0)), 1e-4)
