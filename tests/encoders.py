"""Tiny random image encoders, saved as transformers saves the paper's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 16, "patch_size": 8}


def write_encoders(folder: Path) -> dict[str, str]:
    """ "clip" and "dino", each with the folder it was saved to."""
    torch.manual_seed(0)
    config = CLIPConfig(text_config=SIZES, vision_config=VISION, projection_dim=12)
    made = {
        "clip": (CLIPModel(config), CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})),
        "dino": (ViTModel(ViTConfig(**VISION)), ViTImageProcessor(size={"height": 16, "width": 16})),
    }
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}
