"""On a real Forge: a pair in any dialect acts as the same pair in kohya's, also where Forge itself cannot read it.

Every copy is made on the fly from the maker's files; what it is compared with are tags of a kohya file of the same ΔW.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch

from ..dialects import FLUX_DOUBLE, FLUX_SINGLE, SD3_JOINT, Layers, dialect_tensors, split
from .checks import FAR, same
from .files import ALPHA, ATTENTION, DENOISER, DOWN, UP, Tensors, dreambooth, modules, only, peft, read, uneven, write
from .host import Host, difference
from .jobs import PLAIN, Pair, klora, plain, tag
from .kinds import FLUX_JOB, FLUX_PARTS

pytestmark = pytest.mark.hosts("forge")
Copy = Callable[[Tensors], tuple[Tensors, Tensors]]  # a kohya file -> (the copy, a kohya file of the same ΔW)

# --- kohya names to layers ---

MAKERS = {"double_blocks": ("transformer_blocks", FLUX_DOUBLE), "single_blocks": ("single_transformer_blocks", FLUX_SINGLE),
          "joint_blocks": ("transformer_blocks", SD3_JOINT)}  # fmt: skip


def layer_name(name: str) -> str:
    """`lora_unet_double_blocks_3_img_attn_qkv` -> `transformer_blocks.3.attn.to_qkv`."""
    found = re.fullmatch(rf"{DENOISER}({'|'.join(MAKERS)})_(\d+)_(.+)", name)
    assert found, name
    block, names = MAKERS[found[1]]
    return f"{block}.{found[2]}." + {old.replace(".", "_"): new for new, old in names.items()}[found[3]]


def blocks(tensors: Tensors) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """layer -> (up, down, alpha), of the transformer's blocks."""
    return {
        layer_name(name): (tensors[name + UP], tensors[name + DOWN], float(tensors[name + ALPHA]))
        for name in modules(tensors, DENOISER)
        if "_blocks_" in name
    }


def others(tensors: Tensors) -> Tensors:
    """What is in no block: the text encoder's, Chroma's approximator."""
    return only(tensors, [name for name in modules(tensors) if "_blocks_" not in name])


def without_alpha(layers: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]) -> Layers:
    """alpha/rank is a power of two here: nothing is rounded."""
    return {layer: (up * (alpha / len(down)), down, None) for layer, (up, down, alpha) in layers.items()}


# --- q, k and v trained apart ---


def apart(layers: Layers) -> Layers:
    """Members of fused layers, each with a down of its own."""
    out = {}
    for layer, (up, down, alpha) in layers.items():
        members = split({layer: (up, down, alpha)})
        out |= {m: (part, down.roll(i, 1), alpha) for i, (m, (part, _, _)) in enumerate(members.items())}
    return out


def stacked(layers: Layers) -> Layers:
    """The fused layers of what `apart` gives: ups as a block diagonal, downs one upon the other."""
    out = {}
    for layer, module in layers.items():
        members = list(apart({layer: module}).values())
        up, down = torch.block_diag(*(up for up, _, _ in members)), torch.cat([down for _, down, _ in members])
        alpha = module[2]
        out[layer] = up, down, None if alpha is None else alpha * len(members)
    return out


# --- copies ---


def as_peft(tensors: Tensors) -> tuple[Tensors, Tensors]:
    return peft(tensors), tensors


def as_dreambooth(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Attention of the denoiser only, alpha = rank."""
    kept = only(tensors, [name for name in modules(tensors, DENOISER) if name.endswith(ATTENTION)])
    return dreambooth(tensors), {key: value for key, value in kept.items() if not key.endswith(ALPHA)}


def as_diffusers(dialect: str, makers: str) -> Copy:
    """diffusers', ai-toolkit's: split q, k and v; alpha in the weights."""

    def copy(tensors: Tensors) -> tuple[Tensors, Tensors]:
        layers, rest = without_alpha(blocks(tensors)), others(tensors)
        return (
            dialect_tensors(apart(scale_first(layers)), dialect) | diffusers_others(rest),
            dialect_tensors(stacked(layers), makers) | rest,
        )

    return copy


def scale_first(layers: Layers) -> Layers:
    """diffusers has scale and shift, in this order, in the context's norm of SD3's last block; the makers the reverse."""
    last = {n for n, (up, down, _) in layers.items() if n.endswith("norm1_context.linear") and len(up) == 2 * down.shape[1]}
    return {n: (up.roll(len(up) // 2, 0) if n in last else up, down, alpha) for n, (up, down, alpha) in layers.items()}


def diffusers_others(tensors: Tensors) -> Tensors:
    """Chroma's approximator in diffusers' words; kohya's text encoder keys stay."""
    words = {"_in_layer": ".linear_1", "_out_layer": ".linear_2", "_in_proj": ".in_proj", "_out_proj": ".out_proj"}
    out = {}
    for key, value in tensors.items():
        name, _, part = key.partition(".")
        found = re.fullmatch(rf"{DENOISER}distilled_guidance_layer(?:_layers_(\d+))?(_\w+)", name)
        number = f".layers.{found[1]}" if found and found[1] else ""
        out[f"transformer.distilled_guidance_layer{number}{words[found[2]]}.{part}" if found else key] = value
    return out


def as_onetrainer(tensors: Tensors) -> tuple[Tensors, Tensors]:
    layers, rest = blocks(tensors), others(tensors)
    return dialect_tensors(apart(layers), "onetrainer-flux") | rest, dialect_tensors(stacked(layers), "kohya-flux") | rest


def as_xlabs(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Attention only: qkv and proj of both streams, linear1 without its mlp, linear2."""
    theirs, ours = {}, {}
    for layer, (up, down, _) in without_alpha(blocks(tensors)).items():
        if layer.endswith("to_qkv_mlp_proj"):
            qkv = 3 * down.shape[1]
            theirs[layer.replace("to_qkv_mlp_proj", "to_qkv")] = up[:qkv], down, None
            ours[layer] = torch.cat([up[:qkv], up[qkv:] * 0]), down, None
        elif ".attn." in layer or (layer.startswith("single_") and layer.endswith("proj_out")):
            theirs[layer] = ours[layer] = up, down, None
    return dialect_tensors(theirs, "xlabs-flux"), dialect_tensors(ours, "kohya-flux")


def as_kohya(tensors: Tensors) -> tuple[Tensors, Tensors]:
    return tensors, tensors


# --- cases ---


@dataclass(frozen=True)
class Case:
    checkpoint: str
    pair: Pair  # the maker's files, kohya's dialect
    content: Copy
    style: Copy
    fields: dict = field(default_factory=dict)
    parts: tuple[str, ...] = ()  # additional modules, in the models folder


VAE, CLIP, T5 = FLUX_PARTS
FLOW = {"sampler_name": "Euler", "scheduler": "Simple"}


def sdxl(copy: Copy) -> Case:
    return Case("tiny-sdxl.safetensors", Pair("xl_subject", "xl_style"), copy, copy, {"steps": 3})


def flux(content: Copy, style: Copy) -> Case:
    return Case("tiny-flux.safetensors", Pair("flux_subject", "flux_style"), content, style, FLUX_JOB, FLUX_PARTS)


def sd35(copy: Copy) -> Case:
    return Case("tiny-sd35.safetensors", Pair("sd35_subject", "sd35_style"), copy, copy, FLOW, (VAE, T5))


def chroma(copy: Copy) -> Case:
    return Case("tiny-chroma.safetensors", Pair("chroma_subject", "chroma_style"), copy, copy, FLOW, (VAE, T5))


flux_diffusers, sd3_diffusers = as_diffusers("diffusers-flux", "kohya-flux"), as_diffusers("diffusers-sd3", "kohya-sd3")
CASES = {
    "sd15-peft": Case("tiny-sd15.safetensors", Pair("subject", "style"), as_peft, as_peft),
    "sd2-kohya": Case("tiny-sd2.safetensors", Pair("sd2_subject", "sd2_style"), as_kohya, as_kohya),
    "sd2-peft": Case("tiny-sd2.safetensors", Pair("sd2_subject", "sd2_style"), as_peft, as_peft),
    "sdxl-peft": sdxl(as_peft),
    "sdxl-dreambooth": sdxl(as_dreambooth),
    "flux-diffusers": flux(flux_diffusers, flux_diffusers),
    "flux-diffusers-and-kohya": flux(flux_diffusers, as_kohya),
    "flux-onetrainer": flux(as_onetrainer, as_onetrainer),
    "flux-xlabs": flux(as_xlabs, as_xlabs),
    "flux-xlabs-and-diffusers": flux(as_xlabs, flux_diffusers),
    "sd35-kohya": sd35(as_kohya),
    "sd35-diffusers": sd35(sd3_diffusers),
    "chroma-kohya": chroma(as_kohya),
    "chroma-diffusers": chroma(flux_diffusers),
}


@pytest.fixture
def put(host: Host) -> Iterator[Callable[[str, Tensors], str]]:
    """Put a file among the host's LoRAs for one test.  The host remembers files by name: no name comes twice."""
    paths = []

    def put_file(name: str, tensors: Tensors) -> str:
        paths.append(host.lora / f"klora_test_{name}.safetensors")
        return write(paths[-1], tensors)

    yield put_file
    for path in paths:
        path.unlink()
    host.refresh_loras()


def use(host: Host, case: Case) -> None:
    if not (host.ckpt / case.checkpoint).exists():
        pytest.skip(f"there is no {case.checkpoint} in the models folder")
    parts = [str(host.models_folder / part) for part in case.parts]
    host.options(sd_model_checkpoint=case.checkpoint, forge_additional_modules=parts)
    host.checkpoint = case.checkpoint


@pytest.mark.parametrize("name", CASES)
def test_a_copy_acts_as_the_kohya_file(host: Host, put: Callable[[str, Tensors], str], name: str) -> None:
    case = CASES[name]
    use(host, case)
    before = host.image(plain(**case.fields))
    content_copy, content_kohya = case.content(uneven(read(host.lora / f"{case.pair.content}.safetensors"), 1))
    style_copy, style_kohya = case.style(uneven(read(host.lora / f"{case.pair.style}.safetensors"), 2))
    pair = Pair(put(f"{name}_content", content_copy), put(f"{name}_style", style_copy))
    kohya = Pair(put(f"{name}_content_kohya", content_kohya), put(f"{name}_style_kohya", style_kohya))
    host.refresh_loras()

    def tagged(content: float, style: float) -> dict:
        return plain(prompt=PLAIN["prompt"] + tag(kohya.content, 1, content) + tag(kohya.style, 1, style), **case.fields)

    content = host.image(klora(pair, {"method": "content"}, **case.fields))
    style = host.image(klora(pair, {"method": "style"}, **case.fields))
    chosen = host.image(klora(pair, **case.fields))
    bypassed = host.image(klora(pair, {"engine": "bypass"}, **case.fields))
    assert difference(chosen, bypassed) <= 2
    assert min(difference(content, before), difference(style, before), difference(content, style)) > FAR
    assert min(difference(chosen, content), difference(chosen, style)) > FAR
    assert difference(content, host.image(tagged(1, 0))) <= 1
    assert difference(style, host.image(tagged(0, 1))) <= 1
    assert same(host.image(plain(**case.fields)), before)
