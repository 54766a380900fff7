"""Theorems: OFT, BOFT and IA3 are their definitions, written out slowly in fp64; their update asks for the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from klora_lib.cli.main import main
from klora_lib.errors import PairError
from klora_lib.lora.build import build_delta
from klora_lib.lora.deltas import UNKNOWN, Delta
from klora_lib.lora.file import lora_file
from klora_lib.lora.rows import cut_rows
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.scoring import score_units

from ..pairs import as_file, dense, random_layers
from ..rule.test_scoring import by_sorting
from .test_deltas import F64, LAYER, few, rand


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one.to(F64), two.to(F64), rtol=1e-4, atol=1e-5)


def rotation(blocks: Tensor, bound: float | None = None) -> Tensor:
    """(I + Q)(I − Q)⁻¹ of each block's Q = B − Bᵀ, fp64, Q's norm over all blocks at most ``bound``."""
    q = (blocks - blocks.transpose(-1, -2)).to(F64)
    if bound and float(q.norm()) > bound:
        q = q * bound / q.norm()
    eye = torch.eye(q.shape[-1], dtype=F64)
    return (eye + q) @ torch.linalg.inv(eye - q)


def check(delta: Delta, base: Tensor, expected: Tensor, shape: tuple[int, ...] = ()) -> None:
    """The update is W' − W, the base is not written to, and without it there is none."""
    before = base.clone()
    close(delta.update(base), expected - base)
    assert torch.equal(base, before)
    assert delta.relative and delta.factors() is None and delta.accepts(shape or tuple(base.shape))
    with pytest.raises(NotImplementedError):
        delta.dense()


counts = st.integers(1, 4)


@few
@given(blocks=counts, n=counts, alpha=st.sampled_from([None, 0.0, 1e-3, 0.1, 100.0]), rescaled=st.booleans())
def test_oft_of_kohya_and_lycoris(blocks: int, n: int, alpha: float | None, rescaled: bool) -> None:
    """Block k of the rows: W'_k = R_kᵀ W_k; the constraint is alpha · out; a rescale by rows."""
    stored, base = rand(blocks, n, n), rand(blocks * n, 5, seed=1)
    parts = {"oft_blocks": stored} | ({"alpha": torch.tensor(alpha)} if alpha is not None else {})
    r = rotation(stored, alpha and alpha * blocks * n)
    expected = torch.block_diag(*r).T @ base.to(F64)
    if rescaled:
        parts["rescale"] = rand(blocks * n, 1, seed=2)
        expected = parts["rescale"] * expected
    delta = build_delta(LAYER, parts)
    check(delta, base, expected)
    assert (delta.shape, delta.rank) == ((blocks * n, UNKNOWN), n)
    assert not delta.accepts((blocks * n + 1, 5))


def test_oft_on_a_convolution_turns_the_outputs() -> None:
    stored, w, x = rand(2, 3, 3), rand(6, 4, 3, 3), rand(1, 4, 6, 6)
    delta = build_delta(LAYER, {"oft_blocks": stored, "rescale": rand(6, 1, 1, 1)})
    merged = w + delta.update(w.flatten(1)).view(w.shape)
    conv = torch.nn.functional.conv2d
    turned = torch.einsum("ij,bjhw->bihw", torch.block_diag(*rotation(stored)).T, conv(x, w).to(F64))
    close(conv(x, merged), turned * rand(6, 1, 1, 1).view(-1, 1, 1))


def test_oft_diag_is_the_rotation_itself_with_its_rescale() -> None:
    r, base = rotation(rand(3, 2, 2)) * rand(3, 2, 1, seed=4), rand(6, 5, seed=1)
    delta = build_delta(LAYER, {"oft_diag": r.float(), "alpha": torch.tensor(4.0)})
    check(delta, base, torch.block_diag(*r).T @ base.to(F64))


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_kohyas_oft_of_a_fused_projection_is_one_oft_a_part(parts: int) -> None:
    heights, base = [4, 4, 4, 8][:parts], rand(sum([4, 4, 4, 8][:parts]), 5, seed=1)
    stored = [rand(2, height // 2, height // 2, seed=i) for i, height in enumerate(heights)]
    tensors = {f"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.{i}": t for i, t in enumerate(stored)}
    tensors["oft_unet_double_blocks_0_img_attn_qkv.alpha"] = torch.tensor(0.05)
    delta = lora_file(tensors, "a").modules["transformer_blocks.0.attn.to_qkv"]
    turned = [torch.block_diag(*rotation(t, 0.05 * h)).T @ slab.to(F64) for t, h, slab in
              zip(stored, heights, base.split(heights))]  # fmt: skip
    check(delta, base, torch.cat(turned))
    last = cut_rows(delta, sum(heights[:-1]), sum(heights))  # a model that has the projection split
    assert last is not None
    close(last.update(base[sum(heights[:-1]) :]), turned[-1] - base[sum(heights[:-1]) :])


# --- BOFT of LyCORIS ---


@few
@given(stages=st.integers(1, 3), half=st.integers(1, 2), alpha=st.sampled_from([0.0, 0.01]), rescaled=st.booleans())
def test_boft_of_lycoris(stages: int, half: int, alpha: float, rescaled: bool) -> None:
    """Stage i turns together rows that are 2^i · b/2 apart, written row by row."""
    n, out = 2 * half, 2**stages * half * 3
    stored, base = rand(stages, out // n, n, n), rand(out, 5, seed=1)
    r, now = rotation(stored, alpha * out), base.to(F64)
    for i in range(stages):
        k = 2**i * half
        order = [c * 2 * k + g * k + j for c in range(out // (2 * k)) for j in range(k) for g in range(2)]
        after = now.clone()
        for block in range(out // n):
            places = order[block * n : (block + 1) * n]
            after[places] = r[i, block] @ now[places]
        now = after
    parts = {"oft_blocks": stored, "alpha": torch.tensor(alpha)}
    if rescaled:
        parts["rescale"] = rand(out, 1, seed=2)
        now = now * parts["rescale"]
    check(build_delta(LAYER, parts), base, now)


# --- on the input: PEFT and OneTrainer ---


def triangles(upper: Tensor, n: int) -> Tensor:
    q = torch.zeros(upper.shape[0], n, n, dtype=F64)
    for k in range(upper.shape[0]):
        values = iter(upper[k].to(F64))
        for i in range(n):
            for j in range(i + 1, n):
                q[k, i, j] = next(values)
                q[k, j, i] = -q[k, i, j]
    return q


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_oft_2_without_a_configuration_is_the_series_of_five(shared: bool, scaled: bool) -> None:
    """x → x·R block by block of the input, R = I + 2Q + 2Q² + 2Q³ + Q⁴."""
    upper, base = rand(1 if shared else 3, 6) * 0.1, rand(5, 12, seed=1)
    key = f"lora_unet_{LAYER.replace('.', '_')}.oft_R"
    tensors = {f"{key}.weight": upper} | ({f"{key}.scaled_oft": torch.tensor(1)} if scaled else {})
    q = triangles(upper / 6**0.5 if scaled else upper, 4)
    r = torch.eye(4, dtype=F64) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    m = torch.block_diag(*(r if not shared else r.expand(3, -1, -1)))
    check(lora_file(tensors, "a").modules[LAYER], base, base.to(F64) @ m.T)


def test_butterflies_of_peft_have_its_permutations() -> None:
    """Its kernel for several stages needs a GPU, its permutations do not."""
    layer = pytest.importorskip("peft.tuners.boft.layer").BOFTLayer
    stages, count, n = 3, 8, 4
    stored, s, base = rand(stages, count, n, n), rand(5, 1), rand(5, count * n, seed=1)
    m = torch.eye(count * n, dtype=F64)
    for i in range(stages):
        order = layer.block_butterfly_perm(None, count * n, count // 2**i, n // 2, stages - 1)
        p = layer.perm2mat(None, order).to(F64)
        eye, q = torch.eye(n, dtype=F64), 0.5 * (stored[i] - stored[i].transpose(1, 2)).to(F64)
        m = p @ torch.block_diag(*((eye - q) @ torch.linalg.inv(eye + q))) @ p.T @ m
    check(build_delta(LAYER, {"boft_R": stored, "boft_s": s}), base, (m @ base.to(F64).T).T * s)


# --- IA3 ---


def test_ia3_of_lycoris_is_added_to_one() -> None:
    w = rand(6, 4, 3, 3)
    for on_input, factor, by in ((0, rand(1, 6, 1, 1), (-1, 1, 1, 1)), (1, rand(1, 4, 1, 1), (1, -1, 1, 1))):
        delta = build_delta(LAYER, {"weight": factor, "on_input": torch.tensor(on_input)})
        check(delta, w.flatten(1), (w.to(F64) * (1 + factor.view(by))).flatten(1), (6, 4, 3, 3))
        assert not delta.accepts((5, 5, 3, 3)) and delta.bias_factor is None
        assert delta.rank == 1


# --- beside a fused projection ---


WHOLE, WIDTH = "transformer_blocks.3.attn.to_qkv", 6
SPLIT = {  # a type that knows one side of its weight -> the tensors of one member
    "OFT on the input": lambda: {"oft_R.weight": rand(2, 3) * 0.2},
    "IA3 on the input": lambda: {"weight": rand(WIDTH), "on_input": torch.tensor(1)},
    "OFT on the output": lambda: {"oft_blocks": rand(2, 3, 3)},
}


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("kind", SPLIT)
def test_members_take_their_places_in_the_others_fused_weight(kind: str, kept: tuple[int, ...]) -> None:
    names = [f"transformer_blocks.3.attn.to_{'qkv'[i]}" for i in kept]
    tensors = {f"transformer.{name}.{word}": t for name in names for word, t in SPLIT[kind]().items()}
    file, base = lora_file(tensors, "turner"), rand(3 * WIDTH, WIDTH, seed=5)
    (unit,) = make_pair(file, as_file(random_layers(1, {WHOLE: (3 * WIDTH, WIDTH)}), "painter")).units
    assert unit.name == WHOLE and unit.content is not None and unit.content.accepts((3 * WIDTH, WIDTH))
    change = unit.content.update(base).split(WIDTH)
    for i, slab in enumerate(base.split(WIDTH)):
        expected = file.modules[names[kept.index(i)]].update(slab) if i in kept else torch.zeros_like(slab)
        close(change[i], expected)


def test_a_fused_module_that_does_not_know_its_rows_beside_members_that_do() -> None:
    fused = lora_file({f"transformer.{WHOLE}.oft_R.weight": rand(2, 3) * 0.2}, "turner")
    members = {f"transformer_blocks.3.attn.to_{part}": (WIDTH, WIDTH) for part in "qk"}
    (unit,) = make_pair(fused, as_file(random_layers(1, members), "painter")).units
    assert unit.style is not None and unit.style.shape == (3 * WIDTH, WIDTH) and unit.shape == unit.style.shape


# --- scores ---


def oft_pair() -> tuple[Pair, dict[str, Tensor]]:
    layers = {f"{LAYER}": (8, 12), "mid_block.attentions.0.proj_in": (6, 12)}
    tensors = {f"unet.{name}.oft_blocks": rand(2, out // 2, out // 2, seed=out) for name, (out, _) in layers.items()}
    bases = {name: rand(*shape, seed=7) for name, shape in layers.items()}
    return make_pair(lora_file(tensors, "turner", "1"), as_file(random_layers(3, layers), "painter")), bases


def test_scores_are_those_of_the_change_that_it_makes_to_the_models_weight() -> None:
    pair, bases = oft_pair()
    scores = score_units(pair.units, "auto", torch.device("cpu"), weights=lambda unit, _: bases.get(unit.name))
    style = random_layers(3, {name: tuple(base.shape) for name, base in bases.items()})
    for i, unit in enumerate(pair.units):
        assert unit.content is not None and unit.shape == bases[unit.name].shape
        change, n = unit.content.update(bases[unit.name]).abs(), 2 * unit.content.rank
        assert scores.k[i] == n
        assert float(scores.content_topk[i]) == pytest.approx(by_sorting(change, n), rel=1e-5)
        assert float(scores.content_abs[i]) == pytest.approx(float(change.sum()), rel=1e-5)
        assert float(scores.style_abs[i]) == pytest.approx(float(dense(style[unit.name]).abs().sum()), rel=1e-5)


def test_a_layer_that_the_model_lacks_has_no_part() -> None:
    pair, bases = oft_pair()
    del bases[LAYER]
    scores = score_units(pair.units, "auto", torch.device("cpu"), weights=lambda unit, _: bases.get(unit.name))
    gone = [unit.name for unit in pair.units].index(LAYER)
    assert float(scores.content_abs[gone]) == float(scores.style_abs[gone]) == 0 < float(scores.style_abs[1 - gone])


def test_scores_of_another_model_are_other_scores_and_without_one_there_are_none(tmp_path: Path) -> None:
    pair, bases = oft_pair()
    library, cpu = Library(), torch.device("cpu")
    one, two = (library.score(pair, "auto", cpu, weights=lambda unit, _, s=s: s * bases[unit.name]) for s in (1.0, 3.0))
    torch.testing.assert_close(two.content_abs, 3 * one.content_abs)
    with pytest.raises(PairError, match="content: 'turner' is an OFT, BOFT or IA3.*can be known only with the model"):
        library.score(pair, "auto", cpu)


def test_the_command_plan_says_that_it_needs_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    from ..pairs import write_file

    paths = tmp_path / "painter.safetensors", tmp_path / "turner.safetensors"
    write_file(random_layers(3, {LAYER: (8, 12)}), paths[0])
    save_file({f"unet.{LAYER}.oft_blocks": rand(2, 4, 4)}, paths[1])
    assert main(["plan", *map(str, paths)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("klora: style: 'turner' is an OFT, BOFT or IA3")
    assert said.err.count("\n") == 1
