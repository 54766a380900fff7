"""Forge (``backend.patcher``): a model patcher merges every LoRA when it loads the model, before a pass begins."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from ..engine.layers import sites_of
from ..engine.site import Site
from ..errors import HostError
from ..patching import inside
from .contract import Aside, TextPart
from .forge_weights import numbers, packing
from .forges import Forges

NAME = "Forge"
NEEDED = (
    "available_networks",
    "available_network_aliases",
    "forbidden_network_aliases",
    "loaded_networks",
    "load_networks",
    "load_lora_for_models",
    "list_available_networks",
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # storage the host always merges into
REFRESH = "ModelPatcher.refresh_loras"


def lacks() -> list[str]:
    """What of this family is not there."""
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if model_patcher() is None:
        missing.append("backend.patcher")
    if not hasattr(model_patcher(), "refresh_loras"):
        missing.append(REFRESH)
    return missing


def model_patcher() -> Any:
    """The host's class of patchers; None where there is none."""
    return getattr(sys.modules.get("backend.patcher.base"), "ModelPatcher", None)


def make() -> Forge:
    return Forge(sys.modules["networks"])


class Forge(Forges):
    """Fulfils ``contract.Host``."""

    name = NAME
    reload = "forge_model_reload"

    def model(self) -> Any:
        model = super().model()
        if not hasattr(model.forge_objects.unet, "lora_patches"):
            raise HostError("this WebUI's LoRA loader has changed: its model patcher has no lora_patches")
        return model

    def sites(self) -> Mapping[str, Site]:
        denoiser = self.model().forge_objects.unet.model.diffusion_model
        return sites_of(denoiser, partial(numbers, device=self.device()), packing)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Take the pair's patches out of clones of the patchers, and give the text encoders' its text part.

        The hash by which the host knows what is loaded is changed, so that it loads afresh for the next job.
        """
        parts, model = list(parts), self.model()
        paths = {part.entry.path for part in parts}
        after = model.forge_objects_after_applying_lora
        after.unet, after.clip = with_room(without(after.unet, paths), parts), without_text(after.clip, paths)
        for part in parts:
            if part.file.text:
                name = f"{part.entry.path} {part.file.digest[:16]} (K-LoRA text encoder)"
                _, after.clip = self.networks.load_lora_for_models(
                    None, after.clip, dict(part.file.text), 0.0, part.te, filename=name, online_mode=self.online()
                )
        model.forge_objects.unet, model.forge_objects.clip = after.unet, after.clip
        model.current_lora_hash = f"K-LoRA {id(p)} {model.current_lora_hash}"
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def online(self) -> bool:
        """Does the host add LoRAs at every forward ("fp16 LoRA")?  As it decides itself: never to plain weights."""
        from backend.args import dynamic_args

        packed = self.model().forge_objects.unet.model.storage_dtype not in FLOATS
        return packed and dynamic_args.get("online_lora", False)

    def around_rewrites(self, aside: Aside) -> AbstractContextManager[None]:
        """Fooocus inpaint loads a patcher with other LoRAs within a pass: the host then puts its backups back and merges."""
        loader = self.model().forge_objects.unet.lora_loader
        return inside(loader, ("refresh",), lambda *_, **__: aside())


def without(patcher: Any, paths: set[str]) -> Any:
    """A clone of ``patcher`` without the patches of the files at ``paths``; itself where it has none."""
    ours = [key for key in patcher.lora_patches if key[0] in paths]
    if not ours:
        return patcher
    clone = patcher.clone()
    for key in ours:
        del clone.lora_patches[key]
    return clone


def without_text(clip: Any, paths: set[str]) -> Any:
    """The same for the text encoders, whose patcher sits inside."""
    patcher = without(clip.patcher, paths)
    if patcher is clip.patcher:
        return clip
    clone = clip.clone()
    clone.patcher = patcher
    return clone


def with_room(patcher: Any, parts: Iterable[TextPart]) -> Any:
    """A clone that asks for GPU memory for both LoRAs' factors when the host shares it out, before it loads the model."""
    clone = patcher.clone()
    factors = [d.factors() for part in parts for d in part.file.modules.values()]
    count = sum(up.numel() + down.numel() for up, down, _ in filter(None, factors))
    clone.add_extra_preserved_memory_during_sampling(count * patcher.model.computation_dtype.itemsize)
    return clone
