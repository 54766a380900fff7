"""diffusers' own converters and models are the reference for what the makers' names mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel, Lumina2Transformer2DModel, WanTransformer3DModel
from diffusers.loaders import lora_conversion_utils as reference
from torch import Tensor, nn

from klora_lib.diffusers.model import find_sites, use_diffusers_order
from klora_lib.engine.fit import find_seats
from klora_lib.lora.file import lora_file
from klora_lib.rule.pairing import make_pair


def wan() -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=8, ffn_dim=16,
        num_layers=2, image_dim=8, added_kv_proj_dim=8,
    )  # fmt: skip


def lumina() -> nn.Module:
    """As wide as the real one: diffusers' converter knows its heights by heart."""
    return Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=2304, num_layers=1, num_refiner_layers=1, num_attention_heads=24,
        num_kv_heads=8, multiple_of=8, ffn_dim_multiplier=0.01, cap_feat_dim=8, axes_dim_rope=(32, 32, 32),
        axes_lens=(8, 8, 8),
    )  # fmt: skip


def anima() -> nn.Module:
    return CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, text_embed_dim=8,
        adaln_lora_dim=4, concat_padding_mask=True,
    )  # fmt: skip


def block(kind: str, names: str) -> list[str]:
    return [f"{kind}.{name}" for name in names.split()]


WAN = [f"blocks.{i}.{name}" for i in (0, 1) for name in (
    *block("self_attn", "q k v o"), *block("cross_attn", "q k v o k_img v_img"), "ffn.0", "ffn.2")] + [
    "time_projection.1", "head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
    "img_emb.proj.1", "img_emb.proj.3"]  # fmt: skip
LUMINA = [f"{kind}.0.{name}" for kind in ("layers", "noise_refiner", "context_refiner")
          for name in ("attention.qkv", "attention.out", *block("feed_forward", "w1 w2 w3"), "adaLN_modulation.1")
          if kind != "context_refiner" or name != "adaLN_modulation.1"]  # fmt: skip
ANIMA = [f"blocks.{i}.{name}" for i in (0, 1) for name in (
    *block("self_attn", "q_proj k_proj v_proj output_proj"), *block("cross_attn", "q_proj k_proj v_proj output_proj"),
    "mlp.layer1", "mlp.layer2", *block("adaln_modulation_self_attn", "1 2"), *block("adaln_modulation_cross_attn", "1 2"),
    *block("adaln_modulation_mlp", "1 2"))] + [
    "final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2", "final_layer.linear", "t_embedder.1.linear_1",
    "t_embedder.1.linear_2", "x_embedder.proj.1"]  # fmt: skip
CASES: dict[str, tuple[Callable[[], Any], list[str], Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "Wan": (wan, WAN, reference._convert_non_diffusers_wan_lora_to_diffusers),
    "Lumina 2": (lumina, LUMINA, reference._convert_non_diffusers_lumina2_lora_to_diffusers),
    "Anima": (anima, ANIMA, reference._convert_non_diffusers_anima_lora_to_diffusers),
}


def shapes(model: nn.Module, paths: list[str], convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Any]:
    """(rows, columns) of each layer, by what diffusers makes of its name: the down matrix goes where it means."""
    downs = {path: torch.zeros(1, 1) for path in paths}
    marked = {f"diffusion_model.{path}.lora_A.weight": down for path, down in downs.items()}
    marked |= {f"diffusion_model.{path}.lora_B.weight": torch.zeros(2304 + 2 * 768, 1) for path in paths}  # Lumina's qkv
    converted = convert(marked)
    found = {}
    for path, down in downs.items():
        layers = [key[len("transformer.") : -len(".lora_A.weight")] for key, tensor in converted.items() if tensor is down]
        weights = [model.get_submodule(layer).weight for layer in layers]  # several where it splits qkv
        found[path] = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    return found


@pytest.mark.parametrize("architecture", CASES)
def test_makers_names_mean_what_diffusers_says(architecture: str) -> None:
    make, paths, convert = CASES[architecture]
    model = make()
    makers: dict[str, Tensor] = {}
    for n, (path, (rows, columns)) in enumerate(shapes(model, paths, convert).items()):
        generator = torch.Generator().manual_seed(n)
        makers[f"diffusion_model.{path}.lora_A.weight"] = torch.randn(1, columns, generator=generator)
        makers[f"diffusion_model.{path}.lora_B.weight"] = torch.randn(rows, 1, generator=generator)
    converted = convert(dict(makers))
    there = find_sites(model)
    pair = use_diffusers_order(make_pair(lora_file(makers, "makers"), lora_file(converted, "diffusers")), there)
    assert [unit.name for unit in pair.units if not unit.shared] == []
    found = {id(site.module): part for unit in pair.units for part, site in find_seats(unit, there)}
    layers = {key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in converted if "lora_A" in key}
    assert len(found) == len(layers)
    for layer in layers:
        part = found[id(model.get_submodule(layer))]
        expected = converted[f"transformer.{layer}.lora_B.weight"] @ converted[f"transformer.{layer}.lora_A.weight"]
        for delta in (part.content, part.style):
            assert delta is not None
            torch.testing.assert_close(delta.dense(), expected)


def test_luminas_last_layers_find_their_place() -> None:
    """diffusers' converter does not know them; the shapes and the makers' source do."""
    model = lumina()
    there = find_sites(model)
    paths = {"final_layer.adaLN_modulation.1": "norm_out.linear_1", "final_layer.linear": "norm_out.linear_2"}
    tensors: dict[str, Tensor] = {"diffusion_model.layers.0.attention.out.lora_A.weight": torch.ones(1, 2304),
                                  "diffusion_model.layers.0.attention.out.lora_B.weight": torch.ones(2304, 1)}  # fmt: skip
    for path, layer in paths.items():
        rows, columns = model.get_submodule(layer).weight.shape
        tensors |= {f"diffusion_model.{path}.lora_A.weight": torch.randn(1, columns),
                    f"diffusion_model.{path}.lora_B.weight": torch.randn(rows, 1)}  # fmt: skip
    file = lora_file(tensors, "makers")
    pair = use_diffusers_order(make_pair(file, lora_file(tensors, "again")), there)
    placed = {unit.name: [site.module for _, site in find_seats(unit, there)] for unit in pair.units}
    assert {name: modules for name, modules in placed.items() if name.startswith("norm_out")} == {
        layer: [model.get_submodule(layer)] for layer in paths.values()
    }
