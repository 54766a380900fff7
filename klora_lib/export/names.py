"""What a LoRA's layers are called in a file: kohya's names, which every WebUI reads, and PEFT's, which diffusers writes.

The inverse of what ``lora`` reads.  Some layers are fused in one format and split in the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise

from ..errors import PairError, SettingsError
from ..lora.architectures import ARCHITECTURES, EVERYWHERE, JOINT, SINGLE
from ..lora.deltas import Delta, Lora
from ..lora.keys import find_fused, list_members
from ..lora.rows import MAKERS_LAST, cut_rows, has_two_parts, swap_halves
from ..lora.text import is_sdxl, is_transformer
from ..lora.unet import COMPVIS_TOP, RESNET_PARTS
from ..rule.pairing import stack_members

FORMATS = ("kohya", "peft")
UNET, SDXL, FLUX, FLUX_2, SD3, TRANSFORMER = "a UNet", "SDXL", "Flux", "Flux.2", "SD3", "a transformer"
SD3_WIDTHS = (1536, 2432)  # medium and large
DIFFUSERS = re.compile(  # the layers of transformers whose canonical names are those of diffusers
    r"(?:single_)?transformer_blocks\.\d+\."
    r"(?:attn2?\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(?:_context)?\.net\.(?:0\.proj|2)|norm1(?:_context)?\.linear"
    r"|norm\.linear|proj_mlp|proj_out|(?:img|txt)_mlp\.net\.(?:0\.proj|2)|(?:img|txt)_mod\.1)"
    r"|x_embedder|context_embedder|pos_embed\.proj|proj_out|norm_out\.linear|img_in|txt_in"
    r"|time_text_embed\.(?:timestep|text|guidance)_embedder\.linear_[12]"
)

Layers = Mapping[str, Lora]  # by canonical name


def find_family(layers: Mapping[str, Delta]) -> str:
    """The kind of denoiser that these layers are of.  Raises PairError for one whose names are not written."""
    if not is_transformer(layers):
        return SDXL if is_sdxl(layers) else UNET
    strange = next(
        (layer for layer in layers if not (list_members(layer) or DIFFUSERS.fullmatch(layer) or is_makers(layer))), ""
    )
    if strange or not any(layer.startswith(("transformer_blocks.", "single_transformer_blocks.")) for layer in layers):
        told = strange or next(iter(layers))
        raise PairError(
            f"only layers of SD1.5, SD2, SDXL, SD3, Flux and Qwen-Image are saved as a file, and {told} is none of these"
        )
    widths = {delta.shape[1] for layer, delta in layers.items() if layer.endswith((".to_q", ".to_k", ".to_qkv"))}
    if any(layer.startswith("single_") for layer in layers):
        return FLUX_2 if any(is_gated(layer, delta) for layer, delta in layers.items()) else FLUX
    by_name = any(".attn2." in layer or layer.startswith("pos_embed.") for layer in layers)
    return SD3 if by_name or widths & set(SD3_WIDTHS) else TRANSFORMER


def is_makers(layer: str) -> bool:
    return layer == MAKERS_LAST or layer.endswith("_stream_modulation.lin") or "_stream_modulation_" in layer


def is_gated(layer: str, delta: Delta) -> bool:
    """Whether it is of Flux.2: its mlp is gated, with 6 rows a column where Flux has 4."""
    rows, columns = delta.shape[0], delta.shape[1] if len(delta.shape) > 1 else 1
    more = 9 if layer.endswith(".to_qkv_mlp_proj") else 6 if layer.endswith((".ff.net.0.proj", ".proj_mlp")) else 0
    return "_stream_modulation" in layer or (more > 0 and rows == more * columns)


def choose_format(family: str, wanted: str | None, texts: Iterable[str] = ()) -> str:
    """The format for a file; if none is ``wanted`` kohya's for UNets, else PEFT's where it has names for all.

    ``texts``: the modules of text encoders.  Raises SettingsError for a format that has no names for the denoiser.
    """
    if wanted is None:
        by_peft = family == TRANSFORMER or (family in (FLUX, SD3) and all(CLIP.fullmatch(text) for text in texts))
        return "peft" if by_peft else "kohya"
    if (wanted, family) in (("kohya", TRANSFORMER), ("peft", FLUX_2)):
        other = FORMATS[1 - FORMATS.index(wanted)]
        raise SettingsError(f"{wanted!r} has no names for this denoiser's layers, and {other!r} has", "format")
    return wanted


def name_layers(layers: Layers, family: str, form: str) -> Iterator[tuple[str, Lora]]:
    """(module as the file writes it, its update), with fused layers as the format has them."""
    if form == "kohya":
        for layer, delta in (fuse(layers) if family in (FLUX, FLUX_2, SD3) else layers).items():
            yield name_module(layer, family), delta
        return
    prefix = "unet." if family in (UNET, SDXL) else "transformer."
    for layer, delta in layers.items():
        for part, rows in split(layer, delta):
            yield prefix + part, rows


# --- kohya ---


def name_module(layer: str, family: str) -> str:
    """kohya's name of a layer: SD1.5 and SD2 by diffusers' path, the others by their makers'."""
    if family == SDXL:
        layer = name_as_compvis(layer) or layer
    elif family != UNET:
        layer = name_as_makers(layer, "SD3" if family == SD3 else "Flux") or layer
    return "lora_unet_" + layer.replace(".", "_")


LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)")
MAKERS_PARTS = {ours: theirs for theirs, ours in RESNET_PARTS.items()}
MAKERS_TOP = {ours: theirs for theirs, ours in reversed(COMPVIS_TOP.items())}


def name_as_compvis(layer: str) -> str | None:
    """`down_blocks.1.attentions.0.proj_in` -> `input_blocks.4.1.proj_in`, of SDXL; undoes unet.translate_compvis."""
    if layer in MAKERS_TOP:
        return MAKERS_TOP[layer]
    if middle := MIDDLE.fullmatch(layer):
        kind, n, rest = middle.groups()
        return (
            f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(n)}.{MAKERS_PARTS.get(rest, rest)}"
        )
    if not (found := LEVEL.fullmatch(layer)):
        return None
    side, level, kind, j, rest = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{3 * int(level) + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * int(level) + 2}.2.conv"
    n = 3 * int(level) + int(j) + (side == "down")
    place, last = (0, MAKERS_PARTS.get(rest, rest)) if kind == "resnets" else (1, rest)
    return f"{'input' if side == 'down' else 'output'}_blocks.{n}.{place}.{last}"


BLOCKS = (  # canonical, and the makers' by architecture
    (re.compile(r"transformer_blocks\.(\d+)\.(.+)"), JOINT, {"Flux": "double_blocks", "SD3": "joint_blocks"}),
    (re.compile(r"single_transformer_blocks\.(\d+)\.(.+)"), SINGLE, {"Flux": "single_blocks"}),
    (re.compile(r"()(.+)"), EVERYWHERE, {"Flux": "", "SD3": ""}),
)


def name_as_makers(layer: str, architecture: str) -> str | None:
    """The name in Flux or SD3 as their makers have it; None for a layer that is called the same."""
    names = ARCHITECTURES[architecture].names
    for pattern, block, makers in BLOCKS:
        found = pattern.fullmatch(layer)
        if found and block in names and architecture in makers:
            theirs = next((old for old, new in names[block].items() if new == found[2]), None)
            if theirs is not None:
                return f"{makers[architecture]}.{found[1]}.{theirs}".strip(".")
    return None


TALL = {"attn.to_qkv_mlp_proj": 7}  # rows a column of a fused layer of Flux; three for the others


def fuse(layers: Layers) -> dict[str, Lora]:
    """``layers`` with q, k and v (and the mlp of a single block) as the one weight that the makers have."""
    out: dict[str, Lora] = {}
    for layer, delta in layers.items():
        whole = find_fused(layer)
        if whole is None:
            out[layer] = delta
        elif whole not in out:
            columns = delta.shape[1]
            rows = columns * next((n for end, n in TALL.items() if whole.endswith(end)), 3)
            out[whole] = as_lora(stack_members(whole, dict(layers), (rows, columns)))
    return out


# --- PEFT ---


def split(layer: str, delta: Lora) -> list[tuple[str, Lora]]:
    """The layer as diffusers has it: a fused one as its members, the last norms with scale above shift."""
    if layer == MAKERS_LAST:
        return [("norm_out.linear", as_lora(swap_halves(delta)))]
    if layer.endswith(".norm1_context.linear") and has_two_parts(delta):  # of SD3's last block
        return [(layer, as_lora(swap_halves(delta)))]
    names = list_members(layer)
    if not names:
        return [(layer, delta)]
    rows, columns = delta.shape[:2]
    tall = [columns] * 3 + [rows - 3 * columns] if len(names) == 4 else [rows // 3] * 3
    parts = [cut_rows(delta, first, last) for first, last in pairwise([0, *accumulate(tall)])]
    return [(name, as_lora(part)) for name, part in zip(names, parts) if part is not None]


def as_lora(delta: Delta) -> Lora:
    """A module of two factors as one with its scale inside."""
    low_rank = delta.factors()
    assert low_rank is not None
    up, down, scale = low_rank
    return Lora(up * scale, down, 1.0, delta.shape)


# --- text encoders ---

CLIP = re.compile(r"lora_te(\d?)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)")


def name_text_module(module: str, form: str) -> str:
    """The module of a text encoder in the format; ``module`` is kohya's.  Raises PairError where there is no such name."""
    if form == "kohya":
        return module
    found = CLIP.fullmatch(module)
    if not found:
        raise PairError(f"the text encoder's layer {module} has a name in kohya's format alone")
    encoder = "text_encoder_2" if found[1] == "2" else "text_encoder"
    return f"{encoder}.text_model.encoder.layers.{found[2]}.{found[3]}.{found[4]}"


WORDS: Mapping[str, tuple[str, str]] = {
    "kohya": ("lora_up.weight", "lora_down.weight"), "peft": ("lora_B.weight", "lora_A.weight"),
}  # fmt: skip
