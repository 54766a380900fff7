"""A pipeline's denoiser: its layers by canonical name, their rows in diffusers' order, what keeps us from its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.bypass import Bypassed
from ..engine.layers import sites_from
from ..engine.memory import sampling_bytes
from ..engine.site import Actor, Packed, Site
from ..errors import HostError
from ..lora.architectures import canonical
from ..lora.deltas import Delta
from ..lora.keys import members
from ..lora.rows import LUMINA_LAST, MAKERS_LAST, swapped, two_parts
from ..rule.pairing import Pair, Unit

DENOISERS = ("unet", "transformer", "transformer_2")  # Wan 2.2 has the last one for the lower part of the noise


def denoisers_of(pipe: Any) -> tuple[nn.Module, ...]:
    """The modules that the pipeline calls at its steps, compiled or not.  Raises HostError where there is none."""
    found = tuple(module for name in DENOISERS if isinstance(module := getattr(pipe, name, None), nn.Module))
    if not found:
        raise HostError(
            f"a {type(pipe).__name__} has neither a unet nor a transformer, so it is no pipeline K-LoRA can act on"
        )
    if not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
        raise HostError(f"the {type(pipe).__name__} has no scheduler with timesteps")
    return found


def model_name(pipe: Any) -> str:
    """What a refusal calls the pipeline's model: by its pipeline's class, which SDXL's refiner shares with SDXL."""
    refiner = getattr(getattr(pipe, "config", None), "requires_aesthetics_score", False)
    return "SDXL refiner" if refiner else type(pipe).__name__


def bare(module: nn.Module) -> nn.Module:
    """The module inside what torch.compile returned."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def compiled(module: nn.Module) -> bool:
    """Whether any part of it was compiled: such a part no longer looks for hooks."""
    return bare(module) is not module or any(m._compiled_call_impl is not None for m in module.modules())


def refuse_hooks(actors: Iterable[Actor], module: nn.Module) -> None:
    """Raises HostError where one of ``actors`` would add beside a layer of a compiled module."""
    if compiled(module) and any(isinstance(actor, Bypassed) for actor in actors):
        name = type(bare(module)).__name__
        raise HostError(f"bypass adds by hooks, which the compiled {name} does not run; choose merge, or do not compile it",
                        "engine")  # fmt: skip


def device_of(pipe: Any, module: nn.Module) -> torch.device:
    """Where the pipeline computes, which under offloading is not where its weights are."""
    device = getattr(pipe, "_execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device


IMAGE = 2 * 128 * 128  # latent pixels of a picture of 1024 × 1024 under guidance: where the size is not known yet


def sampling_memory(given: Mapping[str, Any]) -> int:
    """Bytes that a denoiser call with these arguments needs beside the weights."""
    sample = next((given[name] for name in ("sample", "hidden_states") if torch.is_tensor(given.get(name))), None)
    if sample is None:
        return sampling_bytes(IMAGE)
    pixels = math.prod(sample.shape[2:]) if sample.dim() > 3 else 4 * sample.shape[1]  # a patch is 2 × 2 latent pixels
    return sampling_bytes(sample.shape[0] * pixels)


def layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of the whole tree.  PEFT's wrapper stands for the layer it wraps; its own matrices are left out."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    yield path, module
    for name, child in module.named_children():
        yield from layers(child, f"{path}.{name}" if path else name)


def sites(denoiser: nn.Module) -> dict[str, Site]:
    """Every layer of the denoiser by canonical name.  Raises HostError where fused projections hide the layers."""
    there = list(layers(bare(denoiser)))
    for path, module in there:
        if getattr(module, "fused_projections", False) and not members(canonical(f"{path}.to_qkv")):
            raise HostError(f"the projections of {path} are fused; call unfuse_qkv_projections() first")
    found = sites_from(there, numbers, packing)
    return {name: offloaded_norm(site) for name, site in found.items()}


def packing(module: nn.Module) -> Packed | None:
    """A quantised layer: its parameter's shape is that of the bytes, the layer knows that of the numbers."""
    weight: Any = module.weight
    if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point():
        return None
    shape = tuple(weight.shape)
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        shape = (module.out_features, module.in_features)  # type: ignore[assignment]
    return Packed(f"{type(weight).__name__} weights", shape)


def numbers(module: nn.Module) -> Tensor:
    """The weight as numbers, fp32: unpacked where it is quantised, from host memory where accelerate streams it."""
    weight: Any = module.weight
    if weight.device.type == "meta":
        return streamed(module, "weight").detach().float()
    kind = type(weight).__name__
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight).detach().float()
    if hasattr(weight, "quant_state"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, dtype=torch.float32).detach().float()
    if hasattr(weight, "dequantize") and packing(module) is not None:
        return weight.dequantize().detach().float()
    return weight.detach().float()


def streamed(module: nn.Module, name: str) -> Tensor:
    """A parameter that accelerate keeps in host memory between forwards: the very tensor, not a copy."""
    weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if weights is None:
        raise HostError(f"a {type(module).__name__} has its {name} neither in memory nor with accelerate")
    return weights[name]


def offloaded_norm(site: Site) -> Site:
    """A norm is written, not added beside: where accelerate streams it, in host memory."""
    weight = site.module.weight
    if weight.dim() != 1 or weight.device.type != "meta":
        return site
    bias = None if getattr(site.module, "bias", None) is None else streamed(site.module, "bias")
    return replace(site, module=SimpleNamespace(weight=streamed(site.module, "weight"), bias=bias))


# --- the order of rows ---

LAST_NORM = "norm_out.linear"


def in_diffusers_order(pair: Pair, there: Mapping[str, Site]) -> Pair:
    """The pair with the rows that lora.rows put into the makers' order back in diffusers', under diffusers' names."""
    names = {old: new for new, old in LUMINA_LAST.items() if new in there and old not in there}
    if LAST_NORM in there and MAKERS_LAST not in there:
        names[MAKERS_LAST] = LAST_NORM
    return replace(
        pair,
        units=tuple(in_order(unit, names) for unit in pair.units),
        added=tuple(in_order(unit, names) for unit in pair.added),
    )


def in_order(unit: Unit, names: dict[str, str]) -> Unit:
    """Args: names: makers' name -> the model's, of its last layers."""
    name = names.get(unit.name, unit.name)
    if name == LAST_NORM != unit.name:
        return Unit(name, *(turned(delta) for delta in (unit.content, unit.style)))
    if name.endswith(".norm1_context.linear"):
        return Unit(name, *(turned(d) if d and two_parts(d) else d for d in (unit.content, unit.style)))
    return replace(unit, name=name)


def turned(delta: Delta | None) -> Delta | None:
    return swapped(delta) if delta is not None else None
