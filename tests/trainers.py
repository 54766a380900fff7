"""Which trainer writes which architecture's layers by which names: the table of docs/files.md, and a small file a cell.

A cell is (prefix, whose names, words): prefixes that end in an underscore have the path's dots as underscores.
"""

from __future__ import annotations

import torch
from torch import Tensor

T = "transformer_blocks.0"
W = 8  # width of every layer

# architecture -> (makers' names, diffusers' names) -> output rows; the same weights, fused or split
LAYERS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "SD1.5, SDXL": (
        {f"input_blocks.4.1.{T}.attn1.to_q": W, f"input_blocks.4.1.{T}.ff.net.0.proj": 4 * W, "middle_block.1.proj_in": W},
        {f"down_blocks.1.attentions.0.{T}.attn1.to_q": W, f"down_blocks.1.attentions.0.{T}.ff.net.0.proj": 4 * W,
         "mid_block.attentions.0.proj_in": W},
    ),
    "SD3": (
        {"joint_blocks.0.x_block.attn.qkv": 3 * W, "joint_blocks.0.context_block.mlp.fc1": 4 * W},
        {f"{T}.attn.to_q": W, f"{T}.attn.to_k": W, f"{T}.attn.to_v": W, f"{T}.ff_context.net.0.proj": 4 * W},
    ),
    "Flux, Chroma": (
        {"double_blocks.0.img_attn.qkv": 3 * W, "double_blocks.0.txt_attn.proj": W, "double_blocks.0.img_mlp.2": W,
         "single_blocks.0.linear1": 7 * W, "single_blocks.0.linear2": W},
        {f"{T}.attn.to_q": W, f"{T}.attn.to_k": W, f"{T}.attn.to_v": W, f"{T}.attn.to_add_out": W, f"{T}.ff.net.2": W,
         "single_transformer_blocks.0.attn.to_q": W, "single_transformer_blocks.0.attn.to_k": W,
         "single_transformer_blocks.0.attn.to_v": W, "single_transformer_blocks.0.proj_mlp": 4 * W,
         "single_transformer_blocks.0.proj_out": W},
    ),
    "Flux.2": (
        {"double_blocks.0.img_attn.proj": W, "double_blocks.0.img_mlp.0": 6 * W, "single_blocks.0.linear1": 9 * W,
         "double_stream_modulation_img.lin": 6 * W},
        {f"{T}.attn.to_out.0": W, f"{T}.ff.linear_in": 6 * W, "single_transformer_blocks.0.attn.to_qkv_mlp_proj": 9 * W,
         "double_stream_modulation_img.linear": 6 * W},
    ),
    "Qwen-Image": ({}, {f"{T}.attn.to_q": W, f"{T}.attn.add_k_proj": W, f"{T}.img_mlp.net.0.proj": 4 * W, "img_in": W}),
    "Z-Image": (
        {"layers.0.attention.qkv": 3 * W, "layers.0.attention.out": W, "layers.0.feed_forward.w1": 2 * W},
        {"layers.0.attention.to_q": W, "layers.0.attention.to_k": W, "layers.0.attention.to_v": W,
         "layers.0.attention.to_out.0": W, "layers.0.feed_forward.w1": 2 * W},
    ),
    "Lumina 2": (
        {"layers.0.attention.qkv": 2 * W, "layers.0.attention.out": W, "layers.0.feed_forward.w3": 2 * W,
         "noise_refiner.0.adaLN_modulation.1": 4 * W, "final_layer.adaLN_modulation.1": W},
        {"layers.0.attn.to_q": W, "layers.0.attn.to_k": W // 2, "layers.0.attn.to_v": W // 2, "layers.0.attn.to_out.0": W,
         "layers.0.feed_forward.linear_3": 2 * W, "noise_refiner.0.norm1.linear": 4 * W, "norm_out.linear_1": W},
    ),
    "Wan": (
        {"blocks.0.self_attn.q": W, "blocks.0.cross_attn.o": W, "blocks.0.cross_attn.k_img": W, "blocks.0.ffn.0": 4 * W,
         "time_projection.1": 6 * W, "head.head": W},
        {"blocks.0.attn1.to_q": W, "blocks.0.attn2.to_out.0": W, "blocks.0.attn2.add_k_proj": W,
         "blocks.0.ffn.net.0.proj": 4 * W, "condition_embedder.time_proj": 6 * W, "proj_out": W},
    ),
    "Anima": (
        {"blocks.0.self_attn.q_proj": W, "blocks.0.cross_attn.output_proj": W, "blocks.0.mlp.layer1": 4 * W,
         "blocks.0.adaln_modulation_mlp.2": 3 * W, "x_embedder.proj.1": W, "final_layer.adaln_modulation.1": W},
        {f"{T}.attn1.to_q": W, f"{T}.attn2.to_out.0": W, f"{T}.ff.net.0.proj": 4 * W, f"{T}.norm3.linear_2": 3 * W,
         "patch_embed.proj": W, "norm_out.linear_1": W},
    ),
    "Krea 2": (
        {"blocks.0.attn.wq": W, "blocks.0.attn.gate": W, "blocks.0.mlp.down": W, "txtfusion.refiner_blocks.0.attn.wo": W,
         "tproj.1": 6 * W, "last.linear": W},
        {f"{T}.attn.to_q": W, f"{T}.attn.to_gate": W, f"{T}.ff.down": W, "text_fusion.refiner_blocks.0.attn.to_out.0": W,
         "time_mod_proj": 6 * W, "final_layer.linear": W},
    ),
}  # fmt: skip
MAKERS, DIFFUSERS = 0, 1
DIFFSYNTH = {  # its Flux has names of its own
    "blocks.0.attn.a_to_qkv": 3 * W, "blocks.0.attn.b_to_out": W, "blocks.0.ff_a.2": W, "single_blocks.0.to_qkv_mlp": 7 * W,
    "single_blocks.0.proj_out": W,
}  # fmt: skip

KOHYA = ("lora_up.weight", "lora_down.weight", "alpha")
PEFT = ("lora_B.weight", "lora_A.weight", None)
NAMED = ("lora_B.default.weight", "lora_A.default.weight", None)
OLD = ("lora.up.weight", "lora.down.weight", None)
LOKR = ("lokr_w1", "lokr_w2", None)
Cell = tuple[str, int, tuple[str, str, "str | None"]]

FLAT: Cell = ("lora_unet_", MAKERS, KOHYA)
COMFY: Cell = ("diffusion_model.", MAKERS, PEFT)
TRANSFORMER: Cell = ("transformer.", DIFFUSERS, PEFT)
NEW = "Flux, Chroma", "Flux.2", "Z-Image", "Lumina 2", "Wan", "Anima", "Krea 2"

# trainer -> architecture -> the ways it writes that architecture
TRAINERS: dict[str, dict[str, list[Cell]]] = {
    "kohya sd-scripts": {
        "SD1.5, SDXL": [FLAT, ("lora_unet_", DIFFUSERS, KOHYA)],
        **{name: [FLAT] for name in ("SD3", "Flux, Chroma", "Lumina 2", "Anima")},
    },
    "musubi-tuner": {
        **{name: [FLAT] for name in ("Flux, Chroma", "Flux.2", "Wan")},
        **{name: [("lora_unet_", DIFFUSERS, KOHYA)] for name in ("Qwen-Image", "Z-Image")},
    },
    "OneTrainer": {
        "SD1.5, SDXL": [("lora_unet_", DIFFUSERS, KOHYA), ("unet.", DIFFUSERS, KOHYA)],
        **{name: [("lora_transformer_", DIFFUSERS, KOHYA), ("transformer.", DIFFUSERS, KOHYA)]
           for name in ("SD3", "Flux, Chroma", "Qwen-Image", "Z-Image")},
    },
    "ai-toolkit": {
        "SD1.5, SDXL": [("lora_unet_", DIFFUSERS, KOHYA)],
        **{name: [COMFY] for name in ("Flux.2", "Z-Image", "Lumina 2", "Wan", "Anima")},
        "Flux, Chroma": [TRANSFORMER, COMFY],
        "Qwen-Image": [("diffusion_model.", DIFFUSERS, PEFT)],
        "Krea 2": [COMFY, ("base_model.model.", MAKERS, PEFT)],
    },
    "SimpleTuner": {
        "SD1.5, SDXL": [("unet.", DIFFUSERS, OLD), ("unet.", DIFFUSERS, PEFT)],
        **{name: [TRANSFORMER, ("transformer.", DIFFUSERS, OLD), ("lycoris_", DIFFUSERS, LOKR)]
           for name in LAYERS if name != "SD1.5, SDXL"},
    },
    "diffusion-pipe": {
        **{name: [COMFY] for name in NEW},
        "Qwen-Image": [("diffusion_model.", DIFFUSERS, PEFT)],
        "Flux, Chroma": [TRANSFORMER, COMFY],
    },
    "LyCORIS": {name: [("lycoris_", DIFFUSERS, LOKR)] for name in LAYERS},
    "PEFT": {name: [("base_model.model.", DIFFUSERS, PEFT), ("base_model.model.", MAKERS, NAMED)] for name in LAYERS},
    "DiffSynth-Studio": {
        "Flux, Chroma": [("", 2, NAMED)],
        "Qwen-Image": [("", DIFFUSERS, NAMED)],
        "Z-Image": [("", DIFFUSERS, NAMED)],
        "Wan": [("", MAKERS, NAMED), ("pipe.dit.", MAKERS, NAMED)],
        "Krea 2": [("", MAKERS, NAMED)],
    },
}  # fmt: skip


def names(architecture: str, whose: int) -> dict[str, int]:
    """Path -> output rows; where the two use the same names, diffusers'."""
    return DIFFSYNTH if whose > DIFFUSERS else LAYERS[architecture][whose] or LAYERS[architecture][DIFFUSERS]


def tensors(architecture: str, cell: Cell) -> dict[str, Tensor]:
    """A file of rank 1 on every layer; LoKr as w1 ⊗ w2 with as many rows."""
    prefix, whose, (up, down, alpha) = cell
    out: dict[str, Tensor] = {}
    for path, rows in names(architecture, whose).items():
        stem = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        if up == "lokr_w1":
            out |= {f"{stem}.{up}": torch.randn(rows // 4, 2), f"{stem}.{down}": torch.randn(4, W // 2)}
            continue
        out |= {f"{stem}.{up}": torch.randn(rows, 1), f"{stem}.{down}": torch.randn(1, W)}
        if alpha:
            out[f"{stem}.{alpha}"] = torch.tensor(1.0)
    return out


def table() -> str:
    """The table of docs/files.md: a cell with ✓ is a file that a test reads."""
    head = ["trainer", *LAYERS]
    rows = [[trainer, *("✓" if name in cells else "" for name in LAYERS)] for trainer, cells in TRAINERS.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"
