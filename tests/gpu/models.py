"""What is drawn with: the toy, and a full-size SDXL denoiser with random weights, each with a pair of LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from klora_lib import toy

from ..dialects import write_dialect
from ..pairs import random_layers

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
RANKS = (32, 64)
SDXL = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
    transformer_layers_per_block=(1, 2, 10), addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
SMALL = dict(  # the same layout, for trying the program out
    sample_size=16, block_out_channels=(32, 64, 128), attention_head_dim=(1, 2, 4), cross_attention_dim=64,
    transformer_layers_per_block=(1, 1, 2), addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """make: the pipeline on a device, in a type.  pair: the two LoRA files, written into a folder where they are not there.
    job: what a call of the pipeline needs.  size: of the images, in pixels a side."""

    name: str
    make: Callable[[torch.device, torch.dtype], Any]
    pair: Callable[[Path], tuple[Path, Path]]
    job: dict[str, Any]
    size: int


def the_toy() -> Model:
    def make(device: torch.device, dtype: torch.dtype) -> Any:
        return toy.load_pipeline().to(device, dtype)

    job = {"prompt": toy.write_prompt("octopus"), "guidance_scale": toy.GUIDANCE}
    pair = toy.find_lora("octopus"), toy.find_lora("snail")  # both in PEFT's dialect, which the images by hand read
    return Model("toy", make, lambda _: pair, job, 128)


def random_sdxl(size: int, small: bool) -> Model:
    config: dict[str, Any] = SMALL if small else SDXL
    context, text = config["cross_attention_dim"], config["projection_class_embeddings_input_dim"]
    pooled = text - 6 * config["addition_time_embed_dim"]
    g = torch.Generator().manual_seed(3)
    shapes = {"prompt_embeds": (1, 77, context), "pooled_prompt_embeds": (1, pooled)}
    words = {f"{sign}{name}": torch.randn(s, generator=g) for sign in ("", "negative_") for name, s in shapes.items()}

    def pair(folder: Path) -> tuple[Path, Path]:
        paths = folder / f"content_{context}.safetensors", folder / f"style_{context}.safetensors"
        if not all(path.exists() for path in paths):
            write_pair(empty_unet(config), paths)
        return paths

    name = "small random SDXL" if small else "random SDXL"
    return Model(name, lambda *there: sdxl_pipeline(config, *there), pair, {**words, "guidance_scale": 3.0}, size)


def sdxl_pipeline(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    unet = empty_unet(config).to(dtype).to_empty(device=device).eval().requires_grad_(False)
    fill(unet, torch.Generator(device).manual_seed(1))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    pipe = StableDiffusionXLPipeline(None, None, None, None, None, unet, scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def empty_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """SDXL's layers without weights: a full one is made on the GPU, where it takes no time and no host memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            **config,
        )


@torch.no_grad()
def fill(module: nn.Module, generator: torch.Generator) -> None:
    """Random weights that keep an input about as large as it is, so that nothing overflows in half precision."""
    for name, p in module.named_parameters():
        if p.dim() > 1:
            p.normal_(0, 0.8 / p[0].numel() ** 0.5, generator=generator)
        else:
            p.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)


def write_pair(unet: nn.Module, paths: tuple[Path, Path]) -> None:
    """A LoRA of every attention layer in each file, about half as large as what it is added to.

    With larger ones the attention of a random model saturates, and an image is as far from itself, rounded otherwise, as
    from others.
    """
    there = {n: tuple(m.weight.shape) for n, m in unet.named_modules() if isinstance(m, nn.Linear) and n.endswith(ATTENTION)}
    widest = max(columns for _, columns in there.values())
    for seed, (path, rank) in enumerate(zip(paths, RANKS)):
        layers = random_layers(seed, there, rank, 0.4 / (widest * rank) ** 0.5)
        write_dialect({k: (up.half(), down.half(), None) for k, (up, down, _) in layers.items()}, "peft", path)


def image(pipe: Any, model: Model, steps: int, **more: Any) -> Tensor:
    """The latents that a call ends with; the decoder adds nothing to what is to be compared.  fp64 in host memory."""
    dtype = pipe.unet.conv_norm_out.weight.dtype  # a norm is in the type it computes in, whatever else is packed
    job = {k: v.to(pipe._execution_device, dtype) if isinstance(v, Tensor) else v for k, v in model.job.items()}
    return pipe(
        num_inference_steps=steps, height=model.size, width=model.size, output_type="latent", return_dict=False,
        generator=torch.Generator().manual_seed(5), **job, **more,
    )[0].double().cpu()  # fmt: skip
