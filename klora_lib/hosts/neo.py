"""Forge Neo: a Forge whose patches no longer tell which file they came from.

How it keeps LoRAs has changed four times (patches with a flag, wrappers of a layer's weight, its own schedule of
these, matrices that a layer adds to its output), but one function has always loaded all of them, and told in
``current_lora_hash`` what it had loaded: the pair is left out by having that function load the rest again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.layers import sites_of
from ..engine.site import Site
from ..errors import HostError
from . import forge
from .contract import Aside, TextPart
from .forge_weights import packing, readable, unpacker
from .forges import Forges, loaded_loras
from .neo_online import refuse_unknown, scheduled, strengths_followed, under

NAME = "Forge Neo"


def lacks() -> list[str]:
    """What of this family is not there."""
    missing = [what for what in forge.lacks() if what != forge.REFRESH]
    patcher = forge.model_patcher()
    missing += [f"ModelPatcher.{name}" for name in ("add_patches", "clone") if not hasattr(patcher, name)]
    if hasattr(patcher, "refresh_loras"):
        missing.append("patches that do not tell their file")  # Forge's do
    return missing


def make() -> Neo:
    return Neo(sys.modules["networks"])


class Neo(Forges):
    """Fulfils ``contract.Host``."""

    name = NAME
    reload = forge.Forge.reload

    def sites(self) -> Mapping[str, Site]:
        unet = self.model().forge_objects.unet
        denoiser = unet.model.diffusion_model
        refuse_packed(denoiser)
        refuse_unknown(unet)
        return sites_of(denoiser, partial(numbers, device=self.device()), packing)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Leave the pair out of what the host has loaded, and give clones of the text encoders its text part.

        Where that changed anything, so is the hash by which the host knows what is loaded.
        """
        parts, model = list(parts), self.model()
        if changing := [part.entry.name for part in parts if part.entry.path in scheduled(p)]:
            raise HostError(f"the prompt schedules the weight of {changing[0]!r} over the steps; K-LoRA does that")
        changed = self.leave_out({part.entry.path for part in parts})
        after = model.forge_objects_after_applying_lora
        for part in parts:
            if part.file.text:  # the loader asks for a denoiser too; it gets nothing
                text, name = dict(part.file.text), f"{part.entry.path} (K-LoRA text encoder)"
                _, after.clip = self.networks.load_lora_for_models(
                    after.unet, after.clip, text, 0.0, part.te, filename=name, **self.online()
                )
                changed = True
        if changed:
            model.forge_objects.unet, model.forge_objects.clip = after.unet, after.clip
            model.current_lora_hash = f"K-LoRA {id(p)} {model.current_lora_hash}"
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def leave_out(self, paths: set[str]) -> bool:
        """Load again all that is loaded but the files at ``paths``; False where none of these is."""
        loaded = loaded_loras(self.model())
        if not any(path in paths for path, *_ in loaded):
            return False
        names = {net.network_on_disk.filename: net.mentioned_name for net in self.networks.loaded_networks}
        others = [load for load in loaded if load[0] not in paths]
        if unknown := [path for path, *_ in others if path not in names]:
            raise HostError(f"this WebUI's LoRA loader has changed: it lists {unknown[0]!r}, but not by what name it came")
        rest = [(names[path], te, unet) for path, unet, te in others]
        self.networks.load_networks(*([column[i] for column in rest] for i in range(3)))
        if any(path in paths for path, *_ in loaded_loras(self.model())):
            raise HostError("this WebUI's LoRA loader has changed: it loads the pair though it was not asked to")
        return True

    def online(self) -> dict[str, bool]:
        """How the host's loader is told to add a LoRA at every forward ("on-the-fly"), where that is its setting.

        Into packed weights (gguf) it cannot merge one.
        """
        if "online_mode" not in inspect.signature(self.networks.load_lora_for_models).parameters:
            return {}
        settings = getattr(sys.modules.get("backend.args"), "dynamic_args", None)
        return {"online_mode": bool(getattr(settings, "online_lora", False))}

    @contextmanager
    def around_rewrites(self, aside: Aside) -> Iterator[None]:
        with super().around_rewrites(aside), strengths_followed(self.model().forge_objects.unet, aside):
            yield

    @contextmanager
    def before_refiner(self, p: Any, act: Callable[[], None]) -> Iterator[None]:
        from modules import shared

        if getattr(p, "refiner_checkpoint_info", None) is not None and getattr(shared.opts, "refiner_fast_sd", False):
            raise HostError("the option 'Reload \"state_dict\" Only' writes the refiner over the layers of the pair")
        with super().before_refiner(p, act):
            yield


def numbers(module: nn.Module, device: torch.device) -> Tensor:
    """The weight as the host computes with it: unpacked, under the LoRAs that act at every forward; fp32."""
    weight: Any = module.weight.to(device)  # type: ignore[operator,union-attr]
    unpack = unpacking(module, weight)
    weight = (unpack(weight) if unpack else weight).detach().float()
    return under(module, weight).detach()


def unpacking(module: nn.Module, weight: Any) -> Any:
    """The host's own function from packed to numbers, the one that a layer has for its patcher included; None without."""
    return unpacker(weight) or getattr(module, "convert_weight", None)


def refuse_packed(denoiser: nn.Module) -> None:
    """Raise HostError for a model whose layers we can neither write nor add to."""
    modules = list(denoiser.named_modules())
    if hasattr(denoiser, "loras") or any(hasattr(module, "qweight") for _, module in modules):
        raise HostError("this is a Nunchaku (SVDQuant) model, whose fused 4-bit layers take no LoRA of ours")
    for name, module in modules:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            refuse_weight(name, module, weight)
        if FUSED in getattr(getattr(type(module).forward, "__code__", None), "co_names", ()):
            refuse_fused(name, module)


def refuse_weight(name: str, module: nn.Module, weight: Any) -> None:
    if hasattr(weight, "gguf_cls"):  # Q8_0 is int8 too, and we read it
        return
    if type(weight) in (Tensor, nn.Parameter) and not weight.is_floating_point():
        raise HostError(f"the model's weights are {str(weight.dtype).removeprefix('torch.')} ({name}), of which K-LoRA "
                        "does not know the scale")  # fmt: skip
    if not readable(weight) and unpacking(module, weight) is None:
        raise HostError(f"the model's weights are packed as {type(weight).__name__} ({name}), which K-LoRA cannot read")


FUSED = "linear_input_act"  # the host's function of a layer with the activation before it


def refuse_fused(name: str, block: nn.Module) -> None:
    """With int8 weights, and with fp16 accumulation, that function takes the layer's weight and never asks the layer."""
    try:
        fast = torch.backends.cuda.matmul.allow_fp16_accumulation
    except (AttributeError, AssertionError):  # as older torches answer
        fast = False
    for child, layer in block.named_children():
        if fast or getattr(getattr(layer, "weight", None), "storage_dtype", None) == torch.int8:
            told = "in fp16 accumulation" if fast else "in int8"
            raise HostError(f"{name}.{child} is computed {told} together with an activation, where K-LoRA cannot add to it")
