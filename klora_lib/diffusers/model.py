"""A pipeline's denoiser: its layers by canonical name, the order of their rows, and which weights cannot be written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.bypass import Bypassed
from ..engine.layers import collect_sites
from ..engine.memory import estimate_sampling_bytes
from ..engine.site import Actor, Packed, Site
from ..errors import HostError
from ..lora.architectures import make_canonical
from ..lora.keys import list_members
from ..lora.rows import LUMINA_LAST, MAKERS_LAST, has_two_parts, swap_halves
from ..rule.pairing import Pair, Unit

DENOISERS = ("unet", "transformer", "transformer_2")  # Wan 2.2 uses the last one at low noise levels


def find_denoisers(pipe: Any) -> tuple[nn.Module, ...]:
    """The modules that the pipeline calls at its steps, compiled or not.  Raises HostError if there is none."""
    found = tuple(module for name in DENOISERS if isinstance(module := getattr(pipe, name, None), nn.Module))
    if not found:
        raise HostError(
            f"a {type(pipe).__name__} has neither a unet nor a transformer, so it is no pipeline K-LoRA can act on"
        )
    if not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
        raise HostError(f"the {type(pipe).__name__} has no scheduler with timesteps")
    return found


def name_model(pipe: Any) -> str:
    """The model's name in error messages: the pipeline's class, or "SDXL refiner", which has the same class as SDXL."""
    refiner = getattr(getattr(pipe, "config", None), "requires_aesthetics_score", False)
    return "SDXL refiner" if refiner else type(pipe).__name__


def unwrap(module: nn.Module) -> nn.Module:
    """The original module, if ``module`` is what torch.compile returned."""
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def is_compiled(module: nn.Module) -> bool:
    """Whether the module or any module in it was compiled: compiled modules do not run hooks."""
    return unwrap(module) is not module or any(m._compiled_call_impl is not None for m in module.modules())


def refuse_hooks(actors: Iterable[Actor], module: nn.Module) -> None:
    """Raise HostError if one of ``actors`` needs a hook on a layer of a compiled module."""
    if is_compiled(module) and any(isinstance(actor, Bypassed) for actor in actors):
        name = type(unwrap(module)).__name__
        raise HostError(f"bypass adds by hooks, which the compiled {name} does not run; choose merge, or do not compile it",
                        "engine")  # fmt: skip


def find_device(pipe: Any, module: nn.Module) -> torch.device:
    """The device on which the pipeline computes; with offloading its weights may be elsewhere."""
    device = getattr(pipe, "_execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device


IMAGE_PIXELS = 2 * 128 * 128  # latent pixels of an image of 1024 × 1024 with guidance, used while the size is not known


def estimate_sampling_memory(given: Mapping[str, Any]) -> int:
    """Memory that a denoiser call with these arguments needs beside the weights, in bytes."""
    sample = next((given[name] for name in ("sample", "hidden_states") if torch.is_tensor(given.get(name))), None)
    if sample is None:
        return estimate_sampling_bytes(IMAGE_PIXELS)
    pixels = math.prod(sample.shape[2:]) if sample.dim() > 3 else 4 * sample.shape[1]  # a patch is 2 × 2 latent pixels
    return estimate_sampling_bytes(sample.shape[0] * pixels)


def list_layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of all modules.  In place of PEFT's wrappers come the layers in them; PEFT's matrices are left out."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    yield path, module
    for name, child in module.named_children():
        yield from list_layers(child, f"{path}.{name}" if path else name)


def find_sites(denoiser: nn.Module) -> dict[str, Site]:
    """Every layer of the denoiser by canonical name.  Raises HostError if layers are hidden in fused projections."""
    layers = list(list_layers(unwrap(denoiser)))
    for path, module in layers:
        if getattr(module, "fused_projections", False) and not list_members(make_canonical(f"{path}.to_qkv")):
            raise HostError(f"the projections of {path} are fused; call unfuse_qkv_projections() first")
    found = collect_sites(layers, read_weight, find_packing)
    return {name: replace_streamed_norm(site) for name, site in found.items()}


def find_packing(module: nn.Module) -> Packed | None:
    """How a layer's weight is quantised; None if it is plain.

    A quantised parameter has the shape of its bytes.  The shape of the unpacked weight comes from the layer.
    """
    weight: Any = module.weight
    if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point():
        return None
    shape = tuple(weight.shape)
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        shape = (module.out_features, module.in_features)  # type: ignore[assignment]
    return Packed(f"{type(weight).__name__} weights", shape)


def read_weight(module: nn.Module) -> Tensor:
    """The weight in fp32: unpacked if it is quantised, from host memory if accelerate streams it."""
    weight: Any = module.weight
    if weight.device.type == "meta":
        return read_streamed(module, "weight").detach().float()
    kind = type(weight).__name__
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight).detach().float()
    if hasattr(weight, "quant_state"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, dtype=torch.float32).detach().float()
    if hasattr(weight, "dequantize") and find_packing(module) is not None:
        return weight.dequantize().detach().float()
    return weight.detach().float()


def read_streamed(module: nn.Module, name: str) -> Tensor:
    """A parameter that accelerate keeps in host memory between forwards: the tensor itself, not a copy."""
    weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    if weights is None:
        raise HostError(f"a {type(module).__name__} has its {name} neither in memory nor with accelerate")
    return weights[name]


def replace_streamed_norm(site: Site) -> Site:
    """For a norm that accelerate streams: a site with the parameters in host memory, since a norm must be written."""
    weight = site.module.weight
    if weight.dim() != 1 or weight.device.type != "meta":
        return site
    bias = None if getattr(site.module, "bias", None) is None else read_streamed(site.module, "bias")
    return replace(site, module=SimpleNamespace(weight=read_streamed(site.module, "weight"), bias=bias))


# --- the order of rows ---

LAST_NORM = "norm_out.linear"


def use_diffusers_order(pair: Pair, there: Mapping[str, Site]) -> Pair:
    """The pair with diffusers' names and diffusers' order of rows, in place of the makers' that lora.rows gave it."""
    names = {old: new for new, old in LUMINA_LAST.items() if new in there and old not in there}
    if LAST_NORM in there and MAKERS_LAST not in there:
        names[MAKERS_LAST] = LAST_NORM
    return replace(
        pair,
        units=tuple(reorder_unit(unit, names) for unit in pair.units),
        added=tuple(reorder_unit(unit, names) for unit in pair.added),
    )


def reorder_unit(unit: Unit, names: dict[str, str]) -> Unit:
    """The unit under the model's name, with its rows in the model's order.

    Args: names: of the last layers, the makers' name → the model's.
    """
    name = names.get(unit.name, unit.name)
    if name == LAST_NORM != unit.name:
        return Unit(name, *(swap_halves(d) if d else None for d in (unit.content, unit.style)))
    if name.endswith(".norm1_context.linear"):
        return Unit(name, *(swap_halves(d) if d and has_two_parts(d) else d for d in (unit.content, unit.style)))
    return replace(unit, name=name)
