"""Tiny random SD2, SD3.5 and Chroma checkpoints for Forge, and two LoRAs for each.

    FORGE_DIR=… MODELS_DIR=… $FORGE_PYTHON -m tests.live.makers.forge [sd2] [sd35] [chroma]

FORGE_DIR is the WebUI's folder, MODELS_DIR gets Stable-diffusion/ and Lora/.  The models are built of Forge's own classes,
so keys and shapes are those its loader expects; it loads them while `extension` beside this file is installed.  SD3.5 and
Chroma come without a VAE and without T5, SD3.5 with both its CLIPs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import loras

SD2 = dict(
    in_channels=4, model_channels=128, out_channels=4, num_res_blocks=[2] * 4, channel_mult=[1] * 4, num_heads=-1,
    num_head_channels=64, use_spatial_transformer=True, use_linear_in_transformer=True, context_dim=1024,
    transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1,
)  # fmt: skip
SIDE = 384  # of the table of positions: SD3.5 medium's, by which Forge knows the blocks with a second attention
SD35 = dict(
    input_size=None, patch_size=2, in_channels=16, depth=3, adm_in_channels=256, num_patches=SIDE**2,
    pos_embed_max_size=SIDE, qk_norm="rms",
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 3 * 64}},
)  # fmt: skip
CHROMA = dict(
    in_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=2,
    depth_single_blocks=3, axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, guidance_out_dim=256,
    guidance_hidden_dim=128, guidance_n_layers=3,
)  # fmt: skip
TEXT = dict(num_hidden_layers=2, intermediate_size=256)
VAE = dict(block_out_channels=[32] * 4)
ATTENTION = ("attn1_to_", "attn2_to_")
Weights = dict[str, torch.Tensor]


def enter(forge: Path) -> None:
    """Its modules can be imported from here on, as they are where it runs."""
    sys.argv = [sys.argv[0], "--always-cpu"]  # it reads the command line at import
    os.chdir(forge)
    sys.path[:0] = [str(forge / part) for part in ("", "repositories/huggingface_guess", "packages_3rdparty")]


def shipped(repository: str, part: str) -> Path:
    """A component's config.json that Forge brings."""
    return Path("backend", "huggingface", "stabilityai", repository, part)


# --- random weights ---


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Norms at 1, and random what a constructor leaves empty or at zero: a LoRA shows only where all of a path is alive."""
    for key, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.ndim == 1 and key.endswith(("ln_q.weight", "ln_k.weight")):
            weight.fill_(1)
        elif weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.1)
    return model.eval()


def scaled(last: torch.nn.Module, output: torch.Tensor, std: float = 1.0) -> None:
    """The last layer, so that an output like this has this std."""
    for weight in last.parameters():
        weight.mul_(std / float(output.float().std()))


def half(weights: Weights, prefix: str = "") -> Weights:
    found = {prefix + key: value.detach().half().clone().contiguous() for key, value in weights.items()}
    assert all(value.isfinite().all() for value in found.values())
    return found


def text_encoder(repository: str, part: str, seed: int, **sizes: int) -> Weights:
    """A CLIP in transformers' names."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig.from_pretrained(shipped(repository, part))
    config.update(TEXT | sizes)
    config.num_attention_heads, config.projection_dim = config.hidden_size // 64, config.hidden_size
    model = CLIPTextModelWithProjection(config)
    norm = model.text_model.final_layer_norm  # with an output of mean 0 the emphasis of words divides 0 by 0
    norm.weight.add_(torch.randn_like(norm.weight), alpha=0.2)
    norm.bias.copy_(0.1 + 0.2 * torch.randn_like(norm.bias))
    return model.state_dict()


def autoencoder(repository: str, seed: int) -> Weights:
    from backend.nn.vae import IntegratedAutoencoderKL as Autoencoder

    torch.manual_seed(seed)
    model = Autoencoder.from_config({**Autoencoder.load_config(shipped(repository, "vae")), **VAE}).eval()
    scaled(model.decoder.conv_out, model.decode(torch.randn(1, 4, 8, 8)), std=0.4)
    model.decoder.conv_out.bias.zero_()  # mid-grey
    return model.state_dict()


def sd2_denoiser() -> Weights:
    from backend.nn.unet import IntegratedUNet2DConditionModel

    torch.manual_seed(40)
    model = filled(IntegratedUNet2DConditionModel(**SD2))
    context = torch.randn(2, 77, SD2["context_dim"])
    scaled(model.out[2], model(torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), context=context, transformer_options={}))
    return model.state_dict()


def sd35_denoiser() -> Weights:
    from backend.nn.mmditx import MMDiTX

    torch.manual_seed(50)
    model = filled(MMDiTX(**SD35))
    y, context = torch.randn(2, SD35["adm_in_channels"]), torch.randn(2, 77, 4096)
    scaled(model.final_layer.linear, model(torch.randn(2, 16, 8, 8), torch.full((2,), 500.0), y, context))
    return model.state_dict()


def chroma_denoiser() -> Weights:
    from backend.nn.chroma import IntegratedChromaTransformer2DModel

    torch.manual_seed(60)
    model = filled(IntegratedChromaTransformer2DModel(**CHROMA))
    scaled(model.final_layer.linear, model(torch.randn(2, 16, 8, 8), torch.full((2,), 0.5), torch.randn(2, 77, 4096)))
    return model.state_dict()


# --- files ---


class Models:
    """The folder they go to."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Stable-diffusion", "Lora"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def checkpoint(self, name: str, *parts: Weights) -> None:
        path = self.folder / "Stable-diffusion" / f"tiny-{name}.safetensors"
        save_file({key: value for part in parts for key, value in part.items()}, path)
        print(f"{path.name}: {path.stat().st_size >> 20} MiB")

    def pair(self, name: str, subject: loras.Targets, style: loras.Targets, seed: int) -> None:
        loras.write(self.folder / "Lora" / f"{name}_subject.safetensors", subject, rank=4, alpha=4, seed=seed)
        loras.write(self.folder / "Lora" / f"{name}_style.safetensors", style, rank=8, alpha=4, seed=seed + 1)


def in_text(key: str) -> bool:
    return key.startswith("text_model.encoder.layers.")


def sd2(models: Models) -> None:
    from huggingface_guess.utils import unet_to_diffusers

    unet, text = sd2_denoiser(), text_encoder("stable-diffusion-2-1", "text_encoder", 41)
    models.checkpoint(
        "sd2",
        half(unet, "model.diffusion_model."),
        half(text, "cond_stage_model.model.transformer."),
        half(autoencoder("stable-diffusion-2-1", 42), "first_stage_model."),
    )
    named = {new: unet[old] for new, old in unet_to_diffusers(SD2).items() if old in unet}
    layers = loras.targets(named, "lora_unet_", lambda key: ".attentions." in key)
    full = loras.having(layers, *ATTENTION, "ff_net", "proj_in", "proj_out")
    models.pair("sd2", loras.having(layers, *ATTENTION), full | loras.targets(text, "lora_te_", in_text), 43)


def sd35(models: Models) -> None:
    transformer = sd35_denoiser()
    texts = [
        text_encoder("stable-diffusion-3-medium-diffusers", part, seed, hidden_size=SD35["adm_in_channels"] // 2)
        for part, seed in (("text_encoder", 51), ("text_encoder_2", 52))
    ]
    encoders = [half(text, f"text_encoders.clip_{x}.transformer.") for text, x in zip(texts, "lg")]
    models.checkpoint("sd35", half(transformer, "model.diffusion_model."), *encoders)
    layers = loras.targets(transformer, "lora_unet_", lambda key: key.startswith("joint_blocks."))
    tagged = [loras.targets(text, f"lora_te{n}_", in_text) for n, text in enumerate(texts, 1)]
    models.pair("sd35", loras.having(layers, "attn", "mlp"), layers | tagged[0] | tagged[1], 53)


def chroma(models: Models) -> None:
    transformer = chroma_denoiser()
    models.checkpoint("chroma", half(transformer, "model.diffusion_model."))
    layers = loras.targets(transformer, "lora_unet_", lambda key: "_blocks." in key or key.startswith("distilled_"))
    models.pair("chroma", loras.having(layers, "_attn_", "linear1", "linear2"), layers, 61)


MAKERS = {"sd2": sd2, "sd35": sd35, "chroma": chroma}


def main() -> None:
    wanted = sys.argv[1:] or list(MAKERS)
    if unknown := set(wanted) - set(MAKERS):
        sys.exit(f"not made here: {', '.join(sorted(unknown))}; known are {', '.join(MAKERS)}")
    if missing := [name for name in ("FORGE_DIR", "MODELS_DIR") if not os.environ.get(name)]:
        sys.exit(f"not set: {', '.join(missing)}")
    models = Models(Path(os.environ["MODELS_DIR"]).absolute())
    enter(Path(os.environ["FORGE_DIR"]).absolute())
    with torch.no_grad():
        for name in wanted:
            MAKERS[name](models)


if __name__ == "__main__":
    main()
