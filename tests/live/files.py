"""LoRA files for the live tests, made from the maker's: stronger here, weaker there, in other dialects, or broken."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
DENOISER, TEXT = "lora_unet_", "lora_te"
ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0")
INNER = {
    **{f"attn{n}_to_{x}": f"attn{n}.to_{x}" for n in (1, 2) for x in "qkv"},
    **{f"attn{n}_to_out_0": f"attn{n}.to_out.0" for n in (1, 2)},
    "ff_net_0_proj": "ff.net.0.proj",
    "ff_net_2": "ff.net.2",
}


def read(path: Path) -> Tensors:
    return load_file(path)


def write(path: Path, tensors: Tensors, note: str = "") -> str:
    """Without `ss_output_name`, so that the WebUI lists the file by its name. Returns that name."""
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, {"format": "pt", "note": note})
    return path.stem


def write_opening_with(path: Path, tensors: Tensors, opening: bytes) -> str:
    """A sound file that happens to open with these bytes: they are the low bytes of its header's length."""
    write(path, tensors)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    missing = (int.from_bytes(opening, "little") - length) % 256 ** len(opening)
    write(path, tensors, "x" * missing)
    assert path.read_bytes().startswith(opening)
    return path.stem


def modules(tensors: Tensors, prefix: str = "") -> list[str]:
    return sorted({key.split(".")[0] for key in tensors if key.startswith(prefix)})


def only(tensors: Tensors, keep: list[str]) -> Tensors:
    return {key: value for key, value in tensors.items() if key.split(".")[0] in keep}


def uneven(tensors: Tensors, seed: int) -> Tensors:
    """Every denoiser layer's strength times something from 1/3 to 3: layers then switch at different steps."""
    generator = torch.Generator().manual_seed(seed)
    out = dict(tensors)
    for name in modules(tensors, DENOISER):
        factor = 3 ** (2 * torch.rand((), generator=generator) - 1)
        out[name + UP] = (tensors[name + UP].float() * factor).half()
    return out


def attention_only(tensors: Tensors) -> Tensors:
    """The denoiser's attention layers, alpha = rank."""
    names = [name for name in modules(tensors, DENOISER) if name.endswith(ATTENTION)]
    return only(tensors, names) | {name + ALPHA: torch.tensor(float(tensors[name + DOWN].shape[0])) for name in names}


def twin(tensors: Tensors) -> Tensors:
    """Another LoRA of the same denoiser layers: half the rank, the input channels in reverse."""
    out = {}
    for name in modules(tensors, DENOISER):
        down, up = tensors[name + DOWN], tensors[name + UP]
        half = down.shape[0] // 2
        out |= {name + DOWN: down[:half].flip(1), name + UP: up[:, :half], name + ALPHA: tensors[name + ALPHA]}
    return out


# dialects


def dotted(name: str) -> str:
    """kohya name -> diffusers path (`down_blocks.1.attentions.0.…`, `text_model.…`)"""
    name = re.sub(r"^lora_(unet|te\d?)_", "", name)
    text = re.fullmatch(r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_(.+)", name)
    if text:
        return f"text_model.encoder.layers.{text[1]}.{text[2]}.{text[3]}"
    block, rest = denoiser_block(name)
    inner = re.fullmatch(r"transformer_blocks_(\d+)_(.+)", rest)
    return f"{block}.transformer_blocks.{inner[1]}.{INNER[inner[2]]}" if inner else f"{block}.{rest}"


def denoiser_block(name: str) -> tuple[str, str]:
    m = re.match(r"(down|up)_blocks_(\d+)_attentions_(\d+)_", name)
    if m:
        return f"{m[1]}_blocks.{m[2]}.attentions.{m[3]}", name[m.end() :]
    m = re.match(r"(mid_block_attentions_0|middle_block_1)_", name)
    if m:
        return "mid_block.attentions.0", name[m.end() :]
    m = re.match(r"(input|output)_blocks_(\d+)_1_", name)
    number = int(m[2]) - (m[1] == "input")
    return f"{'down' if m[1] == 'input' else 'up'}_blocks.{number // 3}.attentions.{number % 3}", name[m.end() :]


def peft_path(name: str) -> str:
    if name.startswith(DENOISER):
        return "unet." + dotted(name)
    return ("text_encoder_2." if name.startswith("lora_te2_") else "text_encoder.") + dotted(name)


def peft(tensors: Tensors) -> Tensors:
    """The diffusers layout has no alpha: the factor goes into B (a power of two here, so nothing is rounded)."""
    out = {}
    for name in modules(tensors):
        down, up, alpha = (tensors[name + end] for end in (DOWN, UP, ALPHA))
        out[f"{peft_path(name)}.lora_A.weight"] = down
        out[f"{peft_path(name)}.lora_B.weight"] = (up.float() * float(alpha) / down.shape[0]).half()
    return out


def dreambooth(tensors: Tensors) -> Tensors:
    """Old diffusers scripts: `unet.unet.….lora.up.weight`, denoiser attention only, alpha = rank."""
    out = {}
    for name in modules(tensors, DENOISER):
        if name.endswith(ATTENTION):
            out[f"unet.unet.{dotted(name)}.lora.down.weight"] = tensors[name + DOWN]
            out[f"unet.unet.{dotted(name)}.lora.up.weight"] = tensors[name + UP]
    return out


# broken files


def filled(tensors: Tensors, value: float) -> Tensors:
    """One element of one layer is `value`."""
    key = modules(tensors, DENOISER)[0] + UP
    broken = tensors[key].clone()
    broken.view(-1)[0] = value
    return tensors | {key: broken}


def rank_mismatch(tensors: Tensors) -> Tensors:
    key = modules(tensors, DENOISER)[0] + UP
    return tensors | {key: tensors[key][:, :-1]}


def too_wide(tensors: Tensors) -> Tensors:
    """up and down fit each other, but no layer of the model."""
    key = modules(tensors, DENOISER)[0] + DOWN
    return tensors | {key: torch.cat([tensors[key]] * 2, dim=1)}


def zero(tensors: Tensors) -> Tensors:
    return {key: value * 0 if key.endswith(UP) else value for key, value in tensors.items()}


def text_only(tensors: Tensors) -> Tensors:
    return only(tensors, modules(tensors, TEXT))


def half_of_layers(tensors: Tensors, which: int) -> Tensors:
    """Every second denoiser layer: the even and the odd half have none in common."""
    return only(tensors, modules(tensors, DENOISER)[which::2])


def write_bytes(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    return path.stem
