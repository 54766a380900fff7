"""The dialects of LoRA files as data: what each trainer writes before a module's path, and after it.

A key is PREFIX + path + WORD. Each dialect is one entry of DIALECTS, and each spelling of a parameter one of WORDS. Both are
tried in the order in which they stand here, and the first that fits reads the key: a file may mix them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .architectures import TOPS


class Prefix(NamedTuple):
    """pattern: of the key without its word; its last group is the module's path.  role: see keys.Key."""

    pattern: re.Pattern[str]
    role: str


class Dialect(NamedTuple):
    """flat: whether the path has its dots written as underscores."""

    name: str
    flat: bool
    prefixes: tuple[Prefix, ...]


# Words that wrappers and trainers add before the path; they say nothing about the layer
AROUND = r"(?:(?:base_model\.model|module|net|pipe\.dit)\.)*"
AROUND_FLAT = r"_*(?:(?:base_model_model|(?:model_)?diffusion_model|module|net)_+)*"
# Words that torch adds anywhere in the path: for compiled, sharded and checkpointed modules
INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=_)_orig_mod_")


def make_flat_prefix(words: str, role: str) -> Prefix:
    return Prefix(re.compile(rf"(?:{words})_{AROUND_FLAT}(.+)"), role)


def make_dotted_prefix(words: str, role: str) -> Prefix:
    return Prefix(re.compile(rf"{AROUND}(?:(?:{words})\.{AROUND})+(.+)"), role)


def make_bare_prefix(words: str, role: str) -> Prefix:
    """No prefix: the first word of the path says which model it belongs to."""
    return Prefix(re.compile(rf"{AROUND}((?:{words})(?:\..+)?)"), role)


DIALECTS: tuple[Dialect, ...] = (
    Dialect("kohya", True, (
        make_flat_prefix("lora_unet", "denoiser"),
        make_flat_prefix("lora_te1?", "text_encoder"),
        make_flat_prefix("lora_te2", "text_encoder_2"),
        make_flat_prefix("lora_te3", "text_encoder_3"),
    )),
    Dialect("kohya OFT", True, (
        make_flat_prefix("oft_unet", "denoiser"),
        make_flat_prefix("oft_te1?", "text_encoder"),
        make_flat_prefix("oft_te2", "text_encoder_2"),
        make_flat_prefix("oft_te3", "text_encoder_3"),
    )),
    Dialect("OneTrainer", True, (make_flat_prefix("lora_transformer", "denoiser"),)),  # its text encoders as kohya's
    Dialect("LyCORIS", True, (
        make_flat_prefix("lycoris_unet", "denoiser"),
        make_flat_prefix("lycoris_te1?", "text_encoder"),
        make_flat_prefix("lycoris_te2", "text_encoder_2"),
        make_flat_prefix("lycoris_te3", "text_encoder_3"),
        Prefix(re.compile("lycoris_(text_model_.+)"), "text_encoder"),
        make_flat_prefix("lycoris", "denoiser"),
    )),
    Dialect("diffusers", False, (  # OneTrainer's newer files too, with the makers' paths
        make_dotted_prefix(r"lora_unet|lora_transformer|unet|transformer|(?:model\.)?diffusion_model", "denoiser"),
        make_dotted_prefix(r"text_encoder|text_encoder_one|te1?|lora_te1?", "text_encoder"),
        make_dotted_prefix(r"text_encoder_2|text_encoder_two|te2|lora_te2", "text_encoder_2"),
        make_dotted_prefix(r"text_encoder_3|te3|lora_te3", "text_encoder_3"),
    )),
    Dialect("ComfyUI", False, (  # its denoiser, `diffusion_model.`, is above: both may stand before one path
        make_dotted_prefix(r"(?:text_encoders\.)?clip_[lh](?:\.transformer)?", "text_encoder"),
        make_dotted_prefix(r"(?:text_encoders\.)?clip_g(?:\.transformer)?", "text_encoder_2"),
        make_dotted_prefix(r"(?:text_encoders\.)?t5(?:xxl)?(?:\.transformer)?", "text_encoder_3"),
        make_dotted_prefix(r"text_encoders", "language_model"),
    )),
    Dialect("bare", False, (  # PEFT's and DiffSynth's
        make_bare_prefix("|".join(sorted(TOPS)), "denoiser"),
        make_bare_prefix("text_model", "text_encoder"),
    )),
)  # fmt: skip

# --- the end of a key: the parameter's word ---

ADAPTER = r"(?:\.[^.]+)?"  # PEFT may leave the adapter's name: lora_A.default.weight
PROCESSOR = r"(?:\.processor)?\.(to_\w+?|add_[qkv]_proj)_lora"
WORDS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(rf"(.+?){end}"), module, part)
    for end, module, part in (
        # XLabs Flux: 1 is the image stream, 2 the text stream, none the single stream
        (r"\.processor\.(qkv|proj)_lora1\.(up|down)\.weight", r"\1.img_attn.\2", r"lora_\3.weight"),
        (r"\.processor\.(qkv|proj)_lora2\.(up|down)\.weight", r"\1.txt_attn.\2", r"lora_\3.weight"),
        (r"\.processor\.qkv_lora\.(up|down)\.weight", r"\1.attn.qkv", r"lora_\2.weight"),
        (r"\.processor\.proj_lora\.(up|down)\.weight", r"\1.linear2", r"lora_\2.weight"),
        # old attention processors: the projection's name is inside the parameter's
        (rf"{PROCESSOR}\.(up|down)\.(weight|bias)", r"\1.\2", r"lora_\3.\4"),
        (rf"{PROCESSOR}\.alpha", r"\1.\2", "alpha"),
        # DreamBooth, diffusers
        (r"\.lora(?:_linear_layer)?\.(up|down|mid)\.(weight|bias)", r"\1", r"lora_\2.\3"),
        (r"\.lora(?:_linear_layer)?\.alpha", r"\1", "alpha"),
        # kohya
        (rf"\.lora_(up|down|mid){ADAPTER}\.(weight|bias)", r"\1", r"lora_\2.\3"),
        # PEFT
        (rf"\.lora_A{ADAPTER}\.(weight|bias)", r"\1", r"lora_down.\2"),
        (rf"\.lora_B{ADAPTER}\.(weight|bias)", r"\1", r"lora_up.\2"),
        (rf"\.lora_magnitude_vector{ADAPTER}(?:\.weight)?", r"\1", "lora_magnitude_vector"),
        # OFT of PEFT and OneTrainer, and of kohya for a fused projection of Flux
        (rf"\.oft_R{ADAPTER}\.weight", r"\1", "oft_R"),
        (r"\.oft_R\.scaled_oft", r"\1", "scaled_oft"),
        (r"\.(oft_blocks\.\d+)", r"\1", r"\2"),
        # LyCORIS
        (r"\.([ab][12]|bm)\.weight", r"\1", r"\2.weight"),
        (r"\.([^.]+)", r"\1", r"\2"),
    )
)
