"""Theorems of baking: the file, read again, does in every layer what the plan does there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from klora_lib.errors import KLoraError, PairError, SettingsError
from klora_lib.export.bake import Baked, bake
from klora_lib.export.join import Product, join_updates
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import Lora, widen
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.lora.keys import list_members, parse_key
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.selectors import CONTENT, STYLE
from klora_lib.settings import Settings

from ..dialects import dialect_tensors
from ..pairs import SHAPES, as_file, as_pair, random_layers

W = 8
UNET = {
    **SHAPES,
    "down_blocks.0.downsamplers.0.conv": (8, 8, 3, 3),
    "up_blocks.0.upsamplers.0.conv": (8, 8, 3, 3),
    "up_blocks.2.resnets.1.conv_shortcut": (8, 16, 1, 1),
    "mid_block.resnets.1.time_emb_proj": (8, 12),
    "mid_block.attentions.0.proj_out": (12, 12),
    "conv_in": (8, 4, 3, 3),
    "time_embedding.linear_2": (8, 8),
}
XL = "down_blocks.2.attentions.1.transformer_blocks"
SDXL = {
    **UNET,
    f"{XL}.9.attn2.to_k": (12, 2048),
    f"{XL}.3.ff.net.0.proj": (24, 12),
    "add_embedding.linear_1": (8, 6),
    "up_blocks.0.attentions.0.transformer_blocks.4.attn1.to_q": (12, 12),
    "up_blocks.0.attentions.1.transformer_blocks.4.attn1.to_q": (12, 12),
}
DOUBLE, SINGLE = "transformer_blocks.1", "single_transformer_blocks.2"
FLUX_FUSED = {
    f"{DOUBLE}.attn.to_qkv": (3 * W, W),
    f"{DOUBLE}.attn.to_added_qkv": (3 * W, W),
    f"{DOUBLE}.attn.to_out.0": (W, W),
    f"{DOUBLE}.ff.net.0.proj": (4 * W, W),
    f"{SINGLE}.attn.to_qkv_mlp_proj": (7 * W, W),
    f"{SINGLE}.proj_out": (W, 5 * W),
    f"{SINGLE}.norm.linear": (3 * W, W),
}
SD3 = {
    f"{DOUBLE}.attn.to_qkv": (3 * 1536, 1536),
    f"{DOUBLE}.attn2.to_qkv": (3 * 1536, 1536),
    f"{DOUBLE}.ff_context.net.2": (1536, 8),
    f"{DOUBLE}.norm1_context.linear": (2 * 1536, 1536),
}
MODELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {"SD1.5": UNET, "SDXL": SDXL, "Flux": FLUX_FUSED, "SD3": SD3}
DIALECT = {"SD1.5": "peft", "SDXL": "kohya-compvis", "Flux": "kohya-flux", "SD3": "kohya-sd3"}
ONE = ((1.0, 1.0), (1.0, 1.0))
STATIC = ("direct", "content", "style", "np", "average", "topk")


def draw_pair(model: str, ranks: tuple[int, int] = (2, 3), alpha: float | None = 1.0) -> Pair:
    files = []
    for seed, (name, rank) in enumerate(zip(("subject", "painter"), ranks)):
        tensors = dialect_tensors(random_layers(seed, MODELS[model], rank, alpha=alpha), DIALECT[model])
        files.append(lora_file(tensors, name, name))
    return make_pair(*files)


def plan_pair(pair: Pair, **settings: object) -> Plan:
    chosen = Settings(**settings)  # type: ignore[arg-type]
    scores = Library().measure(pair, chosen, torch.device("cpu"))
    return make_plan(pair, scores, chosen, 10)


def expected(plan: Plan, masks: Tensor, weights: tuple[float, float]) -> dict[str, Tensor]:
    """ΔW by layer, added up from dense matrices."""
    out: dict[str, Tensor] = {}
    for (unit, strengths), mask in zip(plan.acting(weights), masks.tolist()):
        each = ((CONTENT, unit.content, strengths[0]), (STYLE, unit.style, strengths[1]))
        for bit, delta, weight in each:
            if mask & bit and delta is not None and weight:
                out[unit.name] = out.get(unit.name, 0) + weight * delta.dense().double()
    return out


def read_again(baked: Baked) -> LoraFile:
    return lora_file(baked.tensors, "baked")


def find_dense(file: LoraFile, layer: str) -> Tensor:
    """ΔW of a layer of a file, its members stacked if the file has it split."""
    if layer in file.modules:
        return file.modules[layer].dense().double()
    return torch.cat([file.modules[name].dense().double() for name in list_members(layer)])


def assert_same(file: LoraFile, wanted: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    for layer, dense in wanted.items():
        got = find_dense(file, layer)
        assert float((got - dense).norm()) <= tolerance * float(dense.norm()), layer
    known = {member for layer in wanted for member in (layer, *list_members(layer))}
    assert set(file.modules) <= known
    assert file.unknown == ()


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("method", STATIC)
@pytest.mark.parametrize("model", list(MODELS))
def test_a_static_method_is_one_exact_lora(model: str, method: str, form: str) -> None:
    pair = draw_pair(model)
    plan = plan_pair(pair, method=method, content_weight=0.7, style_weight=-1.2)
    baked = bake(pair, plan, plan.at(0), plan.settings.weights, form=form)
    assert_same(read_again(baked), expected(plan, plan.at(0), (0.7, -1.2)))
    assert baked.rank <= 5 and not baked.notes


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_blora_is_two_blocks(form: str) -> None:
    pair = draw_pair("SDXL")
    plan = plan_pair(pair, method="blora")
    file = read_again(bake(pair, plan, plan.at(0), ONE, form=form))
    assert_same(file, expected(plan, plan.at(0), (1.0, 1.0)))
    assert len(file.modules) == 2


@pytest.mark.parametrize("moment", [0.05, 0.45, 0.95])
def test_klora_held_at_a_moment(moment: float) -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair)
    masks = plan.at(moment)
    assert_same(read_again(bake(pair, plan, masks, ONE)), expected(plan, masks, (1.0, 1.0)))
    assert not torch.equal(plan.at(0.05), plan.at(0.95)), "the plan switches"


def test_files_with_split_projections_are_fused_for_kohya() -> None:
    """q, k and v of three modules are one of the sum of their ranks."""
    files = [
        lora_file(dialect_tensors(random_layers(seed, FLUX_FUSED, 2, alpha=1.0), "diffusers-flux"), name, name)
        for seed, name in enumerate(("subject", "painter"))
    ]
    pair = make_pair(*files)
    plan = plan_pair(pair, method="direct")
    for form in ("kohya", "peft"):
        file = read_again(bake(pair, plan, plan.at(0), ONE, form=form))
        for layer, dense in expected(plan, plan.at(0), (1.0, 1.0)).items():
            if layer in file.modules:
                assert torch.allclose(file.modules[layer].dense().double(), dense, atol=1e-5)
            else:
                whole = next(each for each in file.modules if layer in list_members(each))
                row = sum(W for _ in list_members(whole)[: list_members(whole).index(layer)])
                rows = file.modules[whole].dense().double()[row : row + len(dense)]
                assert torch.allclose(rows, dense, atol=1e-5), layer


def test_alpha_is_rank_in_every_module() -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair, method="direct")
    kohya = bake(pair, plan, plan.at(0), ONE).tensors
    for key, tensor in kohya.items():
        if key.endswith(".alpha"):
            assert float(tensor) == kohya[key.replace(".alpha", ".lora_down.weight")].shape[0]
    peft = bake(pair, plan, plan.at(0), ONE, form="peft").tensors
    assert {tensor.shape[0] for key, tensor in peft.items() if ".lora_A" in key} == {5}, "its readers know one rank"
    assert not any("alpha" in key for key in peft)


def test_layers_of_one_lora_keep_their_rank() -> None:
    shapes = {**SHAPES, "mid_block.attentions.0.proj_in": (12, 12)}
    pair = make_pair(as_file(random_layers(0, shapes, 2), "subject"), as_file(random_layers(1, SHAPES, 3), "painter"))
    plan = plan_pair(pair, method="direct")
    baked = bake(pair, plan, plan.at(0), ONE)
    assert baked.tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"].shape[0] == 2
    assert_same(read_again(baked), expected(plan, plan.at(0), (1.0, 1.0)))


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


# --- norms, biases, text encoders ---


def test_norms_biases_and_text_encoders() -> None:
    g = torch.Generator().manual_seed(7)
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"

    def make(name: str, seed: int) -> LoraFile:
        extra = {
            "lora_unet_conv_norm_out.w_norm": torch.randn(8, generator=g),
            "lora_unet_conv_norm_out.b_norm": torch.randn(8, generator=g),
            "lora_unet_down_blocks_1_attentions_0_proj_in.diff_b": torch.randn(12, generator=g),
            f"{text}.lora_up.weight": torch.randn(6, 2, generator=g),
            f"{text}.lora_down.weight": torch.randn(2, 6, generator=g),
            f"{text}.alpha": torch.tensor(1.0),
        }
        return as_file(random_layers(seed), name, extra)

    content, style = make("subject", 0), make("painter", 1)
    pair = make_pair(content, style)
    weights = ((0.5, 1.0), (2.0, 0.25))
    plan = plan_pair(pair, method="direct", content_te_weight=0.5, style_weight=0.25, style_te_weight=2.0)
    baked = bake(pair, plan, plan.at(0), weights)
    got = read_again(baked)
    assert_same(got, expected(plan, plan.at(0), (1.0, 0.25)))

    def weigh(take: object, one: float, two: float) -> Tensor:
        return one * widen(take(content)) + two * widen(take(style))  # type: ignore[operator]

    for part in ("weight", "bias"):
        wanted = weigh(lambda file: getattr(file.added["conv_norm_out"], part), 1.0, 0.25)
        assert torch.allclose(getattr(got.added["conv_norm_out"], part), wanted, atol=1e-6)
    proj = "down_blocks.1.attentions.0.proj_in"
    bias = got.modules[proj].bias
    assert bias is not None and torch.allclose(bias, weigh(lambda file: file.modules[proj].bias, 1.0, 0.25), atol=1e-6)
    assert baked.notes == ("the LoRA changes biases, which AUTOMATIC1111 does not read from a LoRA's file",)

    def read_text(file: LoraFile) -> Tensor:
        return build_delta(text, {k.removeprefix(text + "."): v for k, v in file.text.items()}).dense()

    assert torch.allclose(read_text(got), weigh(read_text, 0.5, 2.0), atol=1e-5)
    assert not read_again(bake(pair, plan, plan.at(0), weights, with_text=False)).text
    with pytest.raises(PairError, match="norms or biases of 2 layers, .* only kohya's format has a place"):
        bake(pair, plan, plan.at(0), weights, form="peft")


def test_peft_names_of_text_encoders() -> None:
    text = "lora_te2_text_model_encoder_layers_11_mlp_fc1"
    extra = {f"{text}.lora_up.weight": torch.ones(6, 2), f"{text}.lora_down.weight": torch.ones(2, 6)}
    tensors = dialect_tensors(random_layers(0, SDXL), "kohya-compvis") | extra
    pair = make_pair(lora_file(tensors, "subject", "1"), as_file(random_layers(1, SDXL), "painter"))
    plan = plan_pair(pair, method="content")
    baked = bake(pair, plan, plan.at(0), ONE, form="peft")
    key = "text_encoder_2.text_model.encoder.layers.11.mlp.fc1.lora_B.weight"
    assert torch.equal(baked.tensors[key] @ baked.tensors[key.replace("lora_B", "lora_A")], torch.full((6, 6), 2.0))


# --- what cannot be baked ---


@pytest.mark.parametrize("words", [
    {"lora_up.weight": (12, 2), "lora_down.weight": (2, 12), "dora_scale": (12, 1)},
    {"oft_blocks": (3, 4, 4)},
])  # fmt: skip
def test_what_depends_on_the_model_is_refused(words: dict[str, tuple[int, ...]]) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    dora = lora_file({f"{layer}.{word}": torch.ones(shape) for word, shape in words.items()}, "turner", "1")
    pair = make_pair(dora, as_file(random_layers(0), "painter"))
    plan = plan_pair(make_pair(as_file(random_layers(1), "other"), as_file(random_layers(0), "painter")), method="direct")
    with pytest.raises(PairError, match="content: 'turner' is a DoRA, GLoRA, OFT or IA3 in .*attn1.to_q: what it changes"):
        bake(pair, plan, plan.at(0), ONE)


def test_nothing_left_is_refused() -> None:
    pair = draw_pair("SD1.5")
    plan = plan_pair(pair, method="content")
    with pytest.raises(PairError, match="nothing is left to save"):
        bake(pair, plan, plan.at(0), ((0.0, 0.0), (1.0, 1.0)))


@pytest.mark.parametrize("layer", ["blocks.0.self_attn.q", "layers.0.attention.to_q", "double_stream_blocks.0.block.attn1.to_q"])
def test_a_denoiser_without_written_names_is_refused(layer: str) -> None:
    tensors = {f"diffusion_model.{layer}.lora_A.weight": torch.randn(2, 8), f"diffusion_model.{layer}.lora_B.weight": torch.randn(8, 2)}
    pair = make_pair(lora_file(tensors, "a", "1"), lora_file({k: v + 1 for k, v in tensors.items()}, "b", "2"))
    plan = plan_pair(pair, method="direct")
    with pytest.raises(KLoraError, match="only layers of SD1.5, SD2, SDXL, SD3, Flux and Qwen-Image are saved"):
        bake(pair, plan, plan.at(0), ONE)
