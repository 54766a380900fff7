"""The toy's untrained networks: small ones of Stable Diffusion's own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from . import dataset, shapes, styles

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from torch.nn import Module
    from transformers import CLIPTextModel

WIDTH = 128  # of the text encoder, which is also the width of the cross-attention's context
LENGTH = 16  # tokens of a prompt
CHANNELS, GRID = 8, 16  # channels and side of the latents; a quarter of the picture's side
START, END = "<|startoftext|>", "<|endoftext|>"

SPARE = ("sks", "szn", "ohw", "vrn", "zwx", "qlm")  # words that no caption of the base model has
WORDS = (
    *("a", "an", "the", "on", "in", "of", "and", "with", "background", "style", "picture", "colour", "two"),
    *dataset.COLOURS, *dataset.GROUNDS, "white", "black", "brown",
    *shapes.OBJECTS, *styles.STYLES, *SPARE,
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
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,  # a norm over groups of few channels would remove the colours
        sample_size=styles.SIDE,
        mid_block_add_attention=False,
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
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
SIGMAS = {"sigma_max": 14.6146 / 4, "sigma_min": 0.0292 / 4}  # Stable Diffusion's, for a quarter of its 64 latents a side


def make_scheduler() -> EulerDiscreteScheduler:
    """The noise schedule of SD 2, which predicts velocity, sampled at the noise levels of Karras et al. (arXiv 2206.00364).

    The same noise hides more of a smaller picture, in proportion to its side (arXiv 2403.03206, section 5.3.2). So the
    noise levels are divided by 4, as the latents are a quarter of Stable Diffusion's. Then shapes are decided at the same
    steps as in Stable Diffusion.
    """
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**BETAS, **SIGMAS, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
