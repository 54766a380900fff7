"""Files whose layers or rows are laid out otherwise than diffusers' modules, and text parts of every type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from klora_lib.diffusers import klora

from ..dialects import write_dialect
from ..pairs import Layers, random_layers
from .loras import fused_shapes, layers_of
from .pipes import FAMILIES, image

CLOSE = dict(atol=2e-3, rtol=2e-4)
SWAPPED = {"flux": "norm_out.linear", "sd3": "transformer_blocks.1.norm1_context.linear"}


def halves_swapped(layers: Layers, name: str) -> Layers:
    """Scale and shift of diffusers in the makers' order."""
    up, down, alpha = layers[name]
    return layers | {name: (torch.cat(up.chunk(2)[::-1]), down, alpha)}


def final_layer(layers: Layers) -> dict[str, Tensor]:
    """kohya's tensors of Flux's last norm."""
    up, down, _ = halves_swapped(layers, SWAPPED["flux"])[SWAPPED["flux"]]
    key = "lora_unet_final_layer_adaLN_modulation_1"
    return {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}


def both_layouts(family: str, pipe: Any, folder: Path) -> tuple[Path, Path]:
    """One LoRA: fused and in the makers' order, as kohya writes it; split and in diffusers' order."""
    shapes = fused_shapes(pipe.transformer)
    if family == "flux":
        shapes[SWAPPED[family]] = tuple(pipe.transformer.get_submodule(SWAPPED[family]).weight.shape)
    layers = random_layers(3, shapes, 2, 0.03)
    fused, split = folder / "fused.safetensors", folder / "split.safetensors"
    write_dialect(layers, f"diffusers-{family}", split)
    if family == "flux":
        blocks = {name: module for name, module in layers.items() if name != SWAPPED[family]}
        write_dialect(blocks, "kohya-flux", fused, final_layer(layers))
    else:
        write_dialect(halves_swapped(layers, SWAPPED[family]), "kohya-sd3", fused)
    return fused, split


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("family", SWAPPED)
def test_a_fused_file_on_split_layers(family: str, engine: str, make: Callable, files: Callable, tmp_path: Path) -> None:
    pipe = make(family)
    fused, split = both_layouts(family, pipe, tmp_path)
    other = FAMILIES[family]()
    other.load_lora_weights(str(split.parent), weight_name=split.name)
    expected = image(other, steps=3)
    style = files(family)[1]
    with klora(pipe, fused, style, method="content", engine=engine) as run:
        assert torch.allclose(image(pipe, steps=3), expected, **CLOSE)
    assert run.notes == [] and {u.name for u in run.passes[0].plan.units if u.shared} >= {"transformer_blocks.0.attn.to_qkv"}
    with klora(pipe, style, fused, engine=engine):
        mixed = image(pipe, steps=3)
    assert not torch.allclose(mixed, expected, atol=0.05)


def test_fused_projections_of_a_transformer_are_written_by_rows(files: Callable) -> None:
    pipe, pair = FAMILIES["flux"](), files("flux")
    with klora(pipe, *pair):
        expected = image(pipe)
    pipe.transformer.fuse_qkv_projections()
    plain = image(pipe)
    with klora(pipe, *pair):
        assert torch.allclose(image(pipe), expected, **CLOSE)
    assert torch.equal(image(pipe), plain)


def test_all_of_a_units_members_switch_together(make: Callable, tmp_path: Path) -> None:
    pipe = make("sd3")
    fused, _ = both_layouts("sd3", pipe, tmp_path)
    style = tmp_path / "style.safetensors"
    write_dialect(layers_of(pipe, 8, 3, "attn.", None), "diffusers-sd3", style)
    seen: list[list[tuple[int, int]]] = []

    def look(*_: int) -> None:
        session = run.passes[-1].session
        assert session is not None
        seen.append([(int(row), int(mask)) for row, mask in zip(session.rows, session.masks)])

    with klora(pipe, fused, style, callback=look) as run:
        image(pipe, steps=4)
    for moment in seen:
        shared = {row for row, _ in moment if row >= 0 and run.passes[0].plan.units[row].shared}
        assert all(len({mask for r, mask in moment if r == row}) == 1 for row in shared)
        assert any(sum(r == row for r, _ in moment) == 3 for row in shared)


# --- text encoders ---

Q = "text_model.encoder.layers.0.self_attn.q_proj"
T5_Q = "encoder.block.0.layer.0.SelfAttention.q"
KOHYA_Q = Q.replace(".", "_")


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.5


TEXTS: dict[str, dict[str, Tensor]] = {
    "LoRA": {"lora_up.weight": rand(16, 2), "lora_down.weight": rand(2, 16), "alpha": torch.tensor(1.0)},
    "LoHa": {"hada_w1_a": rand(16, 2), "hada_w1_b": rand(2, 16), "hada_w2_a": rand(16, 3), "hada_w2_b": rand(3, 16)},
    "LoKr": {"lokr_w1": rand(4, 4), "lokr_w2": rand(4, 4)},
    "full": {"diff": rand(16, 16)},
}


def change(kind: str) -> Tensor:
    p = TEXTS[kind]
    if kind == "LoRA":
        return 0.5 * p["lora_up.weight"] @ p["lora_down.weight"]
    if kind == "LoHa":
        return (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    return p["diff"] if kind == "full" else torch.kron(p["lokr_w1"], p["lokr_w2"])


def with_text(path: Path, folder: Path, key: str, parts: dict[str, Tensor]) -> Path:
    out = folder / path.name
    save_file(load_file(path) | {f"{key}.{word}": tensor for word, tensor in parts.items()}, out)
    return out


@pytest.mark.parametrize("engine", ["merge", "bypass"])
@pytest.mark.parametrize("kind", TEXTS)
def test_every_type_of_text_part(kind: str, engine: str, make: Callable, files: Callable, tmp_path: Path) -> None:
    pipe, (content, style) = make("sd15"), files("sd15")
    content = with_text(content, tmp_path, f"lora_te_{KOHYA_Q}", TEXTS[kind])
    x = rand(3, 16)
    layer = pipe.text_encoder.get_submodule(Q)
    expected = torch.nn.functional.linear(x, layer.weight + 0.6 * change(kind), layer.bias)
    with klora(pipe, content, style, content_weight=2, content_te_weight=0.6, engine=engine), torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "key", "place"),
    [
        ("sdxl", f"lora_te1_{KOHYA_Q}", f"text_encoder.{Q}"),
        ("sdxl", f"lora_te2_{KOHYA_Q}", f"text_encoder_2.{Q}"),
        ("sdxl", "lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("flux", f"lora_te1_{KOHYA_Q}", f"text_encoder.{Q}"),
        ("flux", f"lora_te3_{T5_Q.replace('.', '_')}", f"text_encoder_2.{T5_Q}"),
        ("flux", f"text_encoder_2.{T5_Q}", f"text_encoder_2.{T5_Q}"),
    ],
)  # fmt: skip
def test_each_text_encoder(family: str, key: str, place: str, make: Callable, files: Callable, tmp_path: Path) -> None:
    pipe, (content, style) = make(family), files(family)
    parts = {"lora_up.weight": rand(16, 2), "lora_down.weight": rand(2, 16)}
    encoder, _, path = place.partition(".")
    layer = getattr(pipe, encoder).get_submodule(path)
    expected = layer.weight + parts["lora_up.weight"] @ parts["lora_down.weight"]
    with klora(pipe, with_text(content, tmp_path, key, parts), style) as run:
        assert torch.allclose(layer.weight, expected, atol=1e-5) and run.notes == []


def test_what_has_no_place_is_told(make: Callable, files: Callable, tmp_path: Path, caplog: Any) -> None:
    pipe, (content, style) = make("sd15"), files("sd15")
    content = with_text(content, tmp_path, f"lora_te2_{KOHYA_Q}", TEXTS["LoRA"])
    content = with_text(content, tmp_path, "unet.up_blocks.9.resnets.0.conv1", TEXTS["LoRA"])
    with klora(pipe, content, style) as run:
        pass
    assert run.notes == [
        "1 layer of the pair not in the UNet2DConditionModel, up_blocks.9.resnets.0.conv1 among them",
        f"1 layer of the pair not in the text encoders, text_encoder_2.{Q} among them",
    ]
    assert [record.getMessage() for record in caplog.records if "K-LoRA" in record.getMessage()] == [
        f"K-LoRA: {note}" for note in run.notes
    ]


def test_what_is_not_read_is_told(make: Callable, files: Callable, tmp_path: Path, caplog: Any) -> None:
    pipe, (content, style) = make("sd15"), files("sd15")
    content = with_text(content, tmp_path, "lora_te4_model_layers_0_mlp", TEXTS["LoRA"])
    style = with_text(style, tmp_path, "bundle_emb.cat", {"string_to_param": rand(2, 16)})
    with klora(pipe, content, style) as run:
        pass
    assert run.notes == [
        f"3 tensors of '{content.stem}' are of no LoRA dialect that is read, lora_te4_model_layers_0_mlp.alpha among them",
        f"'{style.stem}' has embeddings in it, which are not loaded: cat",
    ]
    assert [r.getMessage() for r in caplog.records if "K-LoRA" in r.getMessage()] == [f"K-LoRA: {n}" for n in run.notes]


def test_a_folder_that_peft_saved(make: Callable, files: Callable, tmp_path: Path) -> None:
    """Its alpha is in the configuration beside the weights: the image is that of PEFT's own merge."""
    peft = pytest.importorskip("peft")
    other = FAMILIES["sd15"]()
    config = peft.LoHaConfig(r=4, alpha=1, target_modules=["to_q", "to_v"], init_weights=False, alpha_pattern={"to_v": 3})
    model = peft.PeftModel(other.unet, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "hada" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.6)
    model.save_pretrained(tmp_path / "my.dog")
    other.unet = model.merge_and_unload()
    expected, pipe, style = image(other, steps=3), make("sd15"), files("sd15")[1]
    assert not torch.allclose(image(pipe, steps=3), expected, atol=0.05)
    for path in (tmp_path / "my.dog", tmp_path / "my.dog" / "adapter_model.safetensors"):
        with klora(pipe, path, style, method="content") as run:
            assert torch.allclose(image(pipe, steps=3), expected, **CLOSE)
        assert "K-LoRA content: my.dog" in run.infotext()
