"""Pairs of every architecture that is saved, and what a saved file must do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from klora_lib.export.bake import Baked
from klora_lib.lora.file import LoraFile, lora_file
from klora_lib.lora.keys import list_members
from klora_lib.rule.cache import Library
from klora_lib.rule.pairing import Pair, make_pair
from klora_lib.rule.plan import Plan, make_plan
from klora_lib.rule.selectors import CONTENT, STYLE
from klora_lib.settings import Settings

from ..dialects import dialect_tensors
from ..pairs import SHAPES, random_layers

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
FLUX_2 = {
    f"{DOUBLE}.attn.to_out.0": (W, W),
    f"{DOUBLE}.ff.net.0.proj": (6 * W, W),
    f"{SINGLE}.attn.to_qkv_mlp_proj": (9 * W, W),
    "double_stream_modulation_img.lin": (6 * W, W),
}
QWEN = {
    f"{DOUBLE}.attn.to_q": (W, W),
    f"{DOUBLE}.attn.add_k_proj": (W, W),
    f"{DOUBLE}.img_mlp.net.0.proj": (4 * W, W),
    f"{DOUBLE}.txt_mod.1": (6 * W, W),
}
MODELS: Mapping[str, Mapping[str, tuple[int, ...]]] = {"SD1.5": UNET, "SDXL": SDXL, "Flux": FLUX_FUSED, "SD3": SD3}
DIALECT = {"SD1.5": "peft", "SDXL": "kohya-compvis", "Flux": "kohya-flux", "SD3": "kohya-sd3"}
ONE_FORMAT = {"kohya": FLUX_2, "peft": QWEN}  # format: the layers of a denoiser that has names in it alone
ONE = ((1.0, 1.0), (1.0, 1.0))
STATIC = ("direct", "content", "style", "np", "average", "topk")


def draw_pair(model: str, ranks: tuple[int, int] = (2, 3), alpha: float | None = 1.0) -> Pair:
    files = []
    for seed, (name, rank) in enumerate(zip(("subject", "painter"), ranks)):
        tensors = dialect_tensors(random_layers(seed, MODELS[model], rank, alpha=alpha), DIALECT[model])
        files.append(lora_file(tensors, name, name))
    return make_pair(*files)


def as_bare_file(shapes: Mapping[str, tuple[int, ...]], name: str, seed: int) -> LoraFile:
    """A LoRA under canonical names."""
    tensors: dict[str, Tensor] = {}
    for layer, (up, down, _) in random_layers(seed, shapes).items():
        tensors |= {f"transformer.{layer}.lora_B.weight": up, f"transformer.{layer}.lora_A.weight": down}
    return lora_file(tensors, name, name)


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
