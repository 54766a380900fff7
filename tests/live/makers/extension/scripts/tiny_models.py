"""For the tests only: Forge builds a model as large as its checkpoint, where it would take a size from a constant.

Of Flux, Chroma, T5, CLIP and the VAE: their numbers of blocks and widths, read off the checkpoint's tensors.  A checkpoint
of the usual size is built as before.
"""

import re
from contextlib import nullcontext
from unittest import mock

import transformers
from backend import loader
from huggingface_guess import model_list

CLIP_HEAD = 64  # channels of a head, in every CLIP text encoder
FLUX_HEAD = 128


def count(weights, pattern):
    """How many blocks there are whose names open like this; `#` stands for the number."""
    numbers = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
    return len({found[1] for found in map(numbers.match, weights) if found})


def flux(weights):
    width = len(weights["txt_in.bias"])  # a weight may be packed, a bias is not
    return {
        "depth": count(weights, "double_blocks.#."),
        "depth_single_blocks": count(weights, "single_blocks.#."),
        "hidden_size": width,
        "num_heads": width // FLUX_HEAD,
    }


def chroma(weights):
    guide = "distilled_guidance_layer."
    return flux(weights) | {
        "guidance_out_dim": len(weights[f"{guide}out_proj.bias"]),
        "guidance_hidden_dim": len(weights[f"{guide}in_proj.bias"]),
        "guidance_n_layers": count(weights, f"{guide}layers.#."),
    }


def t5(weights):
    block = "transformer.encoder.block.0.layer."
    return {
        "num_layers": count(weights, "transformer.encoder.block.#."),
        "d_ff": len(weights[f"{block}1.DenseReluDense.wi_0.weight"]),
        "num_heads": weights[f"{block}0.SelfAttention.relative_attention_bias.weight"].shape[1],
    }


def clip(weights, shipped):
    layer = "transformer.text_model.encoder.layers."
    width = len(weights["transformer.text_model.final_layer_norm.weight"])
    return {
        # SD2's has one layer more in a checkpoint than Forge wants of it
        "num_hidden_layers": min(shipped.num_hidden_layers, count(weights, f"{layer}#.")),
        "intermediate_size": len(weights[f"{layer}0.mlp.fc1.bias"]),
        "hidden_size": width,
        "num_attention_heads": width // CLIP_HEAD,
    }


def vae(weights):
    levels = count(weights, "encoder.down.#.")
    return {"block_out_channels": [len(weights[f"encoder.down.{n}.block.0.conv1.bias"]) for n in range(levels)]}


def sized(guess, kind, weights):
    """A context in which the loader finds the sizes of `weights` for a component of this class."""
    if not isinstance(weights, dict):
        return nullcontext()
    if kind in ("FluxTransformer2DModel", "ChromaTransformer2DModel"):
        sizes = flux(weights) if kind.startswith("Flux") else chroma(weights)
        return mock.patch.object(guess, "unet_config", guess.unet_config | sizes)
    if kind == "T5EncoderModel":
        read = loader.read_arbitrary_config
        return mock.patch.object(loader, "read_arbitrary_config", lambda folder: read(folder) | t5(weights))
    if kind in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        config = transformers.CLIPTextConfig

        def with_sizes(folder):
            shipped = config.from_dict(config.get_config_dict(folder)[0])
            return config.from_dict(shipped.to_dict() | clip(weights, shipped))

        return mock.patch.object(config, "from_pretrained", with_sizes)
    if kind == "AutoencoderKL" and "encoder.down.0.block.0.conv1.bias" in weights:  # not the diffusers layout
        model = loader.IntegratedAutoencoderKL
        read_vae = model.load_config
        return mock.patch.object(model, "load_config", lambda folder: {**read_vae(folder), **vae(weights)})
    return nullcontext()


def install():
    load = loader.load_huggingface_component

    def load_sized(guess, component, library, kind, folder, weights):
        with sized(guess, kind, weights):
            return load(guess, component, library, kind, folder, weights)

    loader.load_huggingface_component = load_sized
    # the other numbers of an SD2 are enough to know it by
    model_list.SD20.unet_config = {k: v for k, v in model_list.SD20.unet_config.items() if k != "model_channels"}
    loader.klora_sizes = True


if not hasattr(loader, "klora_sizes"):  # "Reload UI" runs this file again
    install()
