"""Forge Neo: a Forge whose patches no longer tell which file they came from.

How it keeps LoRAs has changed three times (patches with a flag, wrappers of a layer's weight, its own schedule of
these), but one function has always loaded all of them, and told in ``current_lora_hash`` what it had loaded: the pair
is left out by having that function load the rest again.
"""

from __future__ import annotations

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
from .contract import TextPart
from .forge_weights import packing, readable, unpacker
from .forges import Forges, loaded_loras

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
        denoiser = self.model().forge_objects.unet.model.diffusion_model
        refuse_packed(denoiser)
        return sites_of(denoiser, partial(numbers, device=self.device()), packing)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Leave the pair out of what the host has loaded, and give clones of the text encoders its text part.

        Where that changed anything, so is the hash by which the host knows what is loaded.
        """
        parts, model = list(parts), self.model()
        changed = self.leave_out({part.entry.path for part in parts})
        after = model.forge_objects_after_applying_lora
        for part in parts:
            if part.file.text:  # the loader asks for a denoiser too; it gets nothing
                text, name = dict(part.file.text), f"{part.entry.path} (K-LoRA text encoder)"
                _, after.clip = self.networks.load_lora_for_models(after.unet, after.clip, text, 0.0, part.te, filename=name)
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
    unpack = unpacker(weight)
    weight = (unpack(weight) if unpack else weight).detach().float()
    for act in getattr(module, "weight_function", ()):
        weight = act(weight)
    return weight.detach()  # type: ignore[no-any-return]


def refuse_packed(denoiser: nn.Module) -> None:
    """Raise HostError for a model whose layers we can neither write nor add to."""
    modules = list(denoiser.named_modules())
    if hasattr(denoiser, "loras") or any(hasattr(module, "qweight") for _, module in modules):
        raise HostError("this is a Nunchaku (SVDQuant) model, whose fused 4-bit layers take no LoRA of ours")
    for name, module in modules:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or hasattr(weight, "gguf_cls"):  # Q8_0 is int8 too, and we read it
            continue
        if getattr(weight, "storage_dtype", weight.dtype) == torch.int8:
            raise HostError(f"the model's weights are int8 ({name}), which K-LoRA does not support")
        if not readable(weight):
            raise HostError(f"the model's weights are packed as {type(weight).__name__} ({name}), which K-LoRA cannot read")
