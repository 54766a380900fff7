"""Writers of LoRA files in every naming dialect we read, kept apart from the reader's own tables.

`write_dialect(layers, dialect, path)` saves plain LoRA modules; layers maps canonical layer names
(`down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`) to (up [out, rank], down [rank, in],
alpha or None). Convolutions bring 4-D tensors. UNet dialects take UNet names, Flux and SD3 dialects
the names of those; a layer a dialect has no name for is a ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike

import torch
from safetensors.torch import save_file
from torch import Tensor

Layers = Mapping[str, tuple[Tensor, Tensor, "float | None"]]

UNET_DIALECTS = (
    "kohya-diffusers",
    "kohya-compvis",
    "compvis-dotted",
    "peft",
    "peft-adapter",
    "bare",
    "dreambooth",
    "linear-layer",
    "lycoris",
)
ATTENTION_DIALECTS = ("attn-processor", "attn-processor-bare")  # to_q, to_k, to_v and to_out of a UNet only
FLUX_DIALECTS = ("kohya-flux", "bfl-flux", "diffusers-flux", "onetrainer-flux", "lycoris-flux")
SD3_DIALECTS = ("kohya-sd3", "diffusers-sd3")
SPLITTING = ("diffusers-flux", "onetrainer-flux", "lycoris-flux", "diffusers-sd3")  # a fused layer as its members


def write_dialect(
    layers: Layers, dialect: str, path: str | PathLike[str], extra: Mapping[str, Tensor] | None = None
) -> None:
    """Save `layers` as a .safetensors file in `dialect`; `extra` tensors go in under the keys they have.

    Dialects: UNET_DIALECTS, ATTENTION_DIALECTS, FLUX_DIALECTS, SD3_DIALECTS, "xlabs-flux". Those in SPLITTING
    write a fused layer (`to_qkv`, `to_added_qkv`, `to_qkv_mlp_proj`) as its members, each with the whole down.
    """
    save_file({**dialect_tensors(layers, dialect), **(extra or {})}, path)


def dialect_tensors(layers: Layers, dialect: str) -> dict[str, Tensor]:
    """The state dict of write_dialect."""
    tensors: dict[str, Tensor] = {}
    for layer, (up, down, alpha) in (split(layers) if dialect in SPLITTING else layers).items():
        up_key, down_key, alpha_key = keys(layer, dialect)
        tensors[up_key] = up.clone().contiguous()
        tensors[down_key] = down.clone().contiguous()
        if alpha is not None:
            if alpha_key is None:
                raise ValueError(f"{dialect} has no alpha")
            tensors[alpha_key] = torch.tensor(float(alpha))
    return tensors


KOHYA = ("lora_up.weight", "lora_down.weight", "alpha")
PEFT = ("lora_B.weight", "lora_A.weight", "alpha")
OLD = ("lora.up.weight", "lora.down.weight", "alpha")


def keys(layer: str, dialect: str) -> tuple[str, str, str | None]:
    """(up key, down key, alpha key or None)."""
    flat = layer.replace(".", "_")
    if dialect == "xlabs-flux":
        return xlabs(layer)
    if dialect.startswith("attn-processor"):
        found = re.fullmatch(r"(.+\.attn\d)\.(to_[qkv]|to_out)(?:\.0)?", layer)
        if not found:
            raise ValueError(f"{layer} has no {dialect} name")
        module = f"{'' if dialect.endswith('bare') else 'unet.'}{found[1]}.processor.{found[2]}_lora"
        return f"{module}.up.weight", f"{module}.down.weight", f"{module}.alpha"
    module, words = {
        "kohya-diffusers": lambda: (f"lora_unet_{flat}", KOHYA),
        "kohya-compvis": lambda: (f"lora_unet_{compvis(layer).replace('.', '_')}", KOHYA),
        "compvis-dotted": lambda: (f"diffusion_model.{compvis(layer)}", KOHYA),
        "peft": lambda: (f"unet.{layer}", PEFT),
        "peft-adapter": lambda: (
            f"base_model.model.unet.{layer}",
            ("lora_B.default.weight", "lora_A.default.weight", "alpha"),
        ),
        "bare": lambda: (layer, PEFT),
        "dreambooth": lambda: (f"unet.unet.{layer}", OLD),
        "linear-layer": lambda: (
            f"unet.{layer}",
            ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight", "alpha"),
        ),
        "lycoris": lambda: (f"lycoris_{flat}", KOHYA),
        "kohya-flux": lambda: (f"lora_unet_{flux(layer).replace('.', '_')}", KOHYA),
        "bfl-flux": lambda: (f"diffusion_model.{flux(layer)}", PEFT),
        "diffusers-flux": lambda: (f"transformer.{layer}", PEFT),
        "onetrainer-flux": lambda: (f"lora_transformer_{flat}", KOHYA),
        "lycoris-flux": lambda: (f"lycoris_{flat}", KOHYA),
        "kohya-sd3": lambda: (f"lora_unet_{sd3(layer).replace('.', '_')}", KOHYA),
        "diffusers-sd3": lambda: (f"transformer.{layer}", PEFT),
    }[dialect]()
    up, down, alpha = words
    return f"{module}.{up}", f"{module}.{down}", f"{module}.{alpha}"


# --- other names of a layer ---

COMPVIS_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
COMPVIS_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def compvis(layer: str) -> str:
    """The name in the checkpoint of a UNet; an upsampler sits behind an attention everywhere but in SD1.5's level 0."""
    if layer in COMPVIS_TOP:
        return COMPVIS_TOP[layer]
    words = layer.split(".")
    if words[0] == "mid_block":
        _, kind, n, *rest = words
        if kind == "attentions":
            return ".".join(["middle_block", "1", *rest])
        return f"middle_block.{2 * int(n)}.{COMPVIS_RESNET[rest[0]]}"
    if words[0] not in ("down_blocks", "up_blocks"):
        raise ValueError(f"{layer} has no compvis name")
    side, level, kind, n, *rest = words
    down = side == "down_blocks"
    first = 3 * int(level) + down
    if kind == "downsamplers":
        return f"input_blocks.{first + 2}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + 2}.{1 if level == '0' else 2}.conv"
    block = f"{'input' if down else 'output'}_blocks.{first + int(n)}"
    if kind == "resnets":
        return f"{block}.0.{COMPVIS_RESNET[rest[0]]}"
    return ".".join([block, "1", *rest])


FLUX_DOUBLE = {
    "attn.to_qkv": "img_attn.qkv",
    "attn.to_added_qkv": "txt_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
FLUX_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "proj_out": "linear2", "norm.linear": "modulation.lin"}
SD3_JOINT = {
    "attn.to_qkv": "x_block.attn.qkv",
    "attn.to_added_qkv": "context_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_qkv": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}


def block_name(layer: str, *tables: tuple[str, str, dict[str, str]]) -> str:
    for old, new, names in tables:
        found = re.fullmatch(rf"{old}\.(\d+)\.(.+)", layer)
        if found and found[2] in names:
            return f"{new}.{found[1]}.{names[found[2]]}"
    raise ValueError(f"{layer} has no name in this dialect (is it a member of a fused layer?)")


def flux(layer: str) -> str:
    return block_name(
        layer,
        ("transformer_blocks", "double_blocks", FLUX_DOUBLE),
        ("single_transformer_blocks", "single_blocks", FLUX_SINGLE),
    )


def sd3(layer: str) -> str:
    return block_name(layer, ("transformer_blocks", "joint_blocks", SD3_JOINT))


XLABS_DOUBLE = {"attn.to_qkv": "qkv_lora1", "attn.to_added_qkv": "qkv_lora2", "attn.to_out.0": "proj_lora1",
                "attn.to_add_out": "proj_lora2"}  # fmt: skip
XLABS_SINGLE = {"attn.to_qkv": "qkv_lora", "proj_out": "proj_lora"}  # its qkv is linear1 without the mlp


def xlabs(layer: str) -> tuple[str, str, None]:
    block, n, word = block_name(
        layer,
        ("transformer_blocks", "double_blocks", XLABS_DOUBLE),
        ("single_transformer_blocks", "single_blocks", XLABS_SINGLE),
    ).split(".")
    module = f"{block}.{n}.processor.{word}"
    return f"{module}.up.weight", f"{module}.down.weight", None


def split(layers: Layers) -> dict[str, tuple[Tensor, Tensor, float | None]]:
    """Fused layers as their members: rows of up, the whole down. q, k and v of linear1 are as tall as it is wide."""
    out: dict[str, tuple[Tensor, Tensor, float | None]] = {}
    for layer, (up, down, alpha) in layers.items():
        parent, _, last = layer.rpartition(".")
        if last == "to_qkv":
            rows, names = [up.shape[0] // 3] * 3, ["to_q", "to_k", "to_v"]
        elif last == "to_added_qkv":
            rows, names = [up.shape[0] // 3] * 3, ["add_q_proj", "add_k_proj", "add_v_proj"]
        elif last == "to_qkv_mlp_proj":
            width = down.shape[1]
            rows, names = [width] * 3 + [up.shape[0] - 3 * width], ["to_q", "to_k", "to_v", "../proj_mlp"]
        else:
            out[layer] = up, down, alpha
            continue
        for name, part in zip(names, torch.split(up, rows), strict=True):
            block = parent.rpartition(".")[0]
            member = f"{block}.{name[3:]}" if name.startswith("../") else f"{parent}.{name}"
            out[member] = part, down, alpha
    return out
