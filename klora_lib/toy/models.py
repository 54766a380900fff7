"""The toy's untrained networks: small ones of Stable Diffusion's own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .dataset import GROUNDS
from .emoji import SIDE
from .subjects import BASE, BASE_STYLES, SUBJECTS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from torch.nn import Module
    from transformers import CLIPTextModel

WIDTH = 128  # of the text encoder, which is also the width of the cross-attention's context
LENGTH = 16  # tokens of a prompt
CHANNELS, GRID = 8, SIDE // 8  # channels and side of the latents
START, END = "<|startoftext|>", "<|endoftext|>"

SPARE = ("sks", "szn", "ohw", "vrn", "zwx", "qlm")  # words that no caption of the base model has
WORDS = (
    *("a", "an", "the", "on", "in", "of", "and", "with", "background", "style", "picture", "colour", "two"),
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", *GROUNDS),
    *BASE, *SUBJECTS, *(word for word in BASE_STYLES.values() if word), *SPARE,
)  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt of a CLIPTokenizer with one token for each of WORDS, and letters for other words.

    Merges are added word by word.  Those of earlier words have precedence, so the merges of a new word join the pieces
    that these leave, and earlier words stay one token.
    """
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'-!"
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            pieces = join_pair(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            vocab.append(pieces[0] + pieces[1])
            pieces = join_pair(pieces, merges[-1])
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {token: number for number, token in enumerate([*dict.fromkeys(vocab), START, END])}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def join_pair(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """`pieces`, with every `pair` of neighbours joined into one piece."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def zero_branches(model: Module) -> Module:
    """Set the last layer of every residual branch of `model` to 0, so that training starts faster.  Returns `model`."""
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out", ".to_out.0", ".ff.net.2")):
            for parameter in module.parameters():
                parameter.data.zero_()
    return model


def make_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,  # a norm over groups of few channels would remove the colours
        sample_size=SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the latents are normalised within the autoencoder, channel by channel
    )


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """vocabulary: number of tokens; the last one is the end of the text, the one before it the start."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
            attn_implementation="eager",
        )
    )


def make_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 3, 6),  # diffusers' name for the number of heads
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",  # the prompt is added to the time embedding, as SDXL adds its pooled prompt
        addition_embed_type_num_heads=4,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


def make_scheduler() -> EulerDiscreteScheduler:
    """A noise schedule that predicts velocity, sampled at the noise levels of Karras et al. (arXiv 2206.00364).

    Its last betas are larger than Stable Diffusion's. Plain backgrounds are one value all over the latents, which Stable
    Diffusion's most noise does not hide.
    """
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
