"""Tiny pipelines with random weights, built in code: each family's layers and layout, milliseconds a step."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from klora_lib.diffusers import Run

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."
TEXT = 16  # width of the text encoders


def randomised(module: nn.Module, seed: int) -> Any:
    """Weights larger than a fresh model's: what a LoRA changes shall be seen in the image."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.6 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.2))
            if p.dim() == 1:
                p.add_(0.8)
    return module.eval()


def clip_tokenizer() -> CLIPTokenizer:
    """Letters, alone and at a word's end."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=20)


def clip(seed: int, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2, hidden_size=TEXT, intermediate_size=24, projection_dim=TEXT, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=20, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return randomised((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def t5(seed: int) -> T5EncoderModel:
    return randomised(
        T5EncoderModel(T5Config(vocab_size=40, d_model=TEXT, d_kv=8, d_ff=24, num_layers=1, num_heads=2)), seed
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "dog": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=20)


def vae(seed: int) -> AutoencoderKL:
    return randomised(
        AutoencoderKL(
            block_out_channels=(4, 8), latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2, sample_size=16, layers_per_block=1, scaling_factor=1.0, shift_factor=0.0,
        ),
        seed,
    )  # fmt: skip


def discrete() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


UNET = dict(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip


def sd15() -> StableDiffusionPipeline:
    unet = randomised(UNet2DConditionModel(cross_attention_dim=TEXT, **UNET), 1)
    pipe = StableDiffusionPipeline(
        vae=vae(2), text_encoder=clip(3), tokenizer=clip_tokenizer(), unet=unet, scheduler=discrete(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return quiet(pipe)


def sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        cross_attention_dim=2 * TEXT, transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=TEXT + 12, **UNET,
    )  # fmt: skip
    tokenizer = clip_tokenizer()
    pipe = StableDiffusionXLPipeline(
        vae=vae(2), text_encoder=clip(3), text_encoder_2=clip(4, projected=True), tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=randomised(unet, 1), scheduler=discrete(), add_watermarker=False,
    )  # fmt: skip
    return quiet(pipe)


def sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        caption_projection_dim=8, joint_attention_dim=2 * TEXT, pooled_projection_dim=2 * TEXT, out_channels=4,
        qk_norm="rms_norm", dual_attention_layers=(0,), pos_embed_max_size=8,
    )  # fmt: skip
    tokenizer = clip_tokenizer()
    pipe = StableDiffusion3Pipeline(
        transformer=randomised(transformer, 1), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(2),
        text_encoder=clip(3, projected=True), tokenizer=tokenizer, text_encoder_2=clip(4, projected=True),
        tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    return quiet(pipe)


def flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=TEXT, pooled_projection_dim=TEXT, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(2), text_encoder=clip(3), tokenizer=clip_tokenizer(),
        text_encoder_2=t5(5), tokenizer_2=word_tokenizer(), transformer=randomised(transformer, 1),
    )  # fmt: skip
    return quiet(pipe)


FAMILIES = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe: Any, seed: int = 5, steps: int = 5, **given: Any) -> torch.Tensor:
    """The latents that the pipeline ends with, float; the decoder adds nothing to what is to be compared."""
    size = {} if "image" in given and hasattr(pipe, "unet") else dict(height=16, width=16)
    more = {"max_sequence_length": 16} if hasattr(pipe, "transformer") else {}
    return pipe(
        "a dog", num_inference_steps=steps, output_type="latent", return_dict=False,
        **{"generator": torch.Generator().manual_seed(seed), **size, **more, **given},
    )[0].clone()  # fmt: skip


def denoiser(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def calls_of(run: Run) -> list[int]:
    """Places in the schedule that each pass went through."""
    return [len(each.progress) for each in run.passes]
