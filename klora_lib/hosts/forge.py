"""Forge (``backend.patcher``): a model patcher merges every LoRA when it loads the model, before a pass begins."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import LONGEST_NAME, HostError, shorten
from ..late import Late
from ..patching import wrap_functions
from .forges import Forges

if TYPE_CHECKING:
    from ..engine import layers
    from ..engine.site import Site
    from . import forge_weights
    from .contract import PutAside, TextPart
else:
    layers = Late("klora_lib.engine.layers")
    forge_weights = Late("klora_lib.hosts.forge_weights")

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
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # the host always merges into weights of these types
REFRESH = "ModelPatcher.refresh_loras"


def find_missing() -> list[str]:
    """What this WebUI lacks of this family."""
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if find_model_patcher() is None:
        missing.append("backend.patcher")
    if not hasattr(find_model_patcher(), "refresh_loras"):
        missing.append(REFRESH)
    return missing


def find_model_patcher() -> Any:
    """The host's class of model patchers; None if there is none."""
    return getattr(sys.modules.get("backend.patcher.base"), "ModelPatcher", None)


def make_host() -> Forge:
    return Forge(sys.modules["networks"])


class Forge(Forges):
    """Fulfils ``contract.Host``."""

    name = NAME
    reload_function = "forge_model_reload"

    def get_model(self) -> Any:
        model = super().get_model()
        if not hasattr(model.forge_objects.unet, "lora_patches"):
            raise HostError("this WebUI's LoRA loader has changed: its model patcher has no lora_patches")
        return model

    def find_sites(self) -> Mapping[str, Site]:
        denoiser = self.get_model().forge_objects.unet.model.diffusion_model
        return layers.list_sites(
            denoiser, partial(forge_weights.read_weight, device=self.get_device()), forge_weights.find_packing
        )

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart], keep: bool = True) -> None:
        """Clone the patchers without the pair's patches, and add the pair's text part to the clone of the text encoders'.

        The text with which the host remembers what is loaded is changed, so that it loads again for the next job.
        """
        parts, model = list(parts), self.get_model()
        if not is_loaded_for(p, model.current_lora_hash):
            self.replace_patchers(model, parts)
            model.current_lora_hash = LoadedWithoutPair(p, model.current_lora_hash, keep)
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def replace_patchers(self, model: Any, parts: list[TextPart]) -> None:
        paths = {part.entry.path for part in parts}
        after = model.forge_objects_after_applying_lora
        unet = drop_patches(after.unet, paths)
        refuse_regions(unet, parts)
        after.unet, after.clip = reserve_memory(unet, parts), drop_text_patches(after.clip, paths)
        for part in parts:
            if part.file.text:
                # without the path: extensions find a LoRA's patches by it, and Regional Prompter weighs them by region
                name = f"{part.entry.name} {part.file.digest[:16]} (K-LoRA text encoder)"
                _, after.clip = self.networks.load_lora_for_models(
                    None, after.clip, dict(part.file.text), 0.0, part.te, filename=name, online_mode=self.is_online()
                )
        model.forge_objects.unet, model.forge_objects.clip = after.unet, after.clip

    def finish_merging(self, modules: Iterable[nn.Module]) -> None:
        """Nothing is left to merge: the host does it before it launches a sampler.  Counts the passes of the job."""
        if isinstance(loaded := self.get_model().current_lora_hash, LoadedWithoutPair):
            loaded.passes += 1

    def is_online(self) -> bool:
        """Whether the host adds LoRAs at every forward ("fp16 LoRA").  It never does so with plain weights."""
        from backend.args import dynamic_args

        packed = self.get_model().forge_objects.unet.model.storage_dtype not in FLOATS
        return packed and dynamic_args.get("online_lora", False)

    def wrap_rewrites(self, put_aside: PutAside) -> AbstractContextManager[None]:
        """Fooocus inpaint loads a patcher with other LoRAs during a pass: the host then restores the weights and merges."""
        loader = self.get_model().forge_objects.unet.lora_loader
        return wrap_functions(loader, ("refresh",), lambda *_, **__: put_aside())


class LoadedWithoutPair(str):
    """The host's list of loaded LoRAs, as text, while the pair is not among them although the host loaded it.

    The host loads LoRAs if this text differs from the list that it wants.  It is to differ always, but for one moment:
    between the two passes of hires fix.  If the tags are the same there, the host keeps what is loaded, and with it what an
    extension changed in the first pass (the ``stop=`` of lora-block-weight).
    """

    job: Any
    host_text: str
    passes: int
    keep: bool  # whether the job's hires pass has the same text parts

    def __new__(cls, job: Any, host_text: Any, keep: bool = True) -> LoadedWithoutPair:
        own = host_text.host_text if isinstance(host_text, LoadedWithoutPair) else str(host_text)
        new = super().__new__(cls, f"K-LoRA {id(job)} {own}")
        new.job, new.host_text, new.passes, new.keep = weakref.ref(job), own, 0, keep
        return new

    @property
    def is_between_passes(self) -> bool:
        return self.keep and self.passes == 1 and bool(getattr(self.job(), "is_hr_pass", False))

    def __eq__(self, other: object) -> bool:
        return self.is_between_passes and other == self.host_text

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def is_loaded_for(p: Any, loaded: Any) -> bool:
    """Whether the host did not load again because ``p`` goes on with its second pass."""
    return isinstance(loaded, LoadedWithoutPair) and loaded.job() is p and loaded.is_between_passes


def drop_patches(patcher: Any, paths: set[str]) -> Any:
    """A clone of ``patcher`` without the patches of the files at ``paths``; ``patcher`` itself if it has none of them."""
    ours = [key for key in patcher.lora_patches if key[0] in paths]
    if not ours:
        return patcher
    clone = patcher.clone()
    for key in ours:
        del clone.lora_patches[key]
    return clone


def drop_text_patches(clip: Any, paths: set[str]) -> Any:
    """The same for the text encoders' object, which has a patcher as an attribute."""
    patcher = drop_patches(clip.patcher, paths)
    if patcher is clip.patcher:
        return clip
    clone = clip.clone()
    clone.patcher = patcher
    return clone


def refuse_regions(unet: Any, parts: Iterable[TextPart]) -> None:
    """Raise HostError if LoRAs have weights by region and the pair has tags: these would count as LoRAs of a region.

    The extension then finds fewer patches on a layer than it has weights, and each LoRA acts in every region.  unet:
    without the pair.  The host itself never adds LoRAs at every forward to plain weights.
    """
    tagged = [part.entry.name for part in parts if part.tag]
    by_region = any(online for *_, online in unet.lora_patches) and unet.model.storage_dtype in FLOATS
    if tagged and by_region:
        why = "Regional Prompter (Latent) would not keep the other LoRAs to their regions; set its weight in K-LoRA instead"
        raise HostError(f"the tag <lora:{shorten(tagged[0], LONGEST_NAME)}> is of a LoRA of the pair: with it, {why}")


def reserve_memory(patcher: Any, parts: Iterable[TextPart]) -> Any:
    """A clone that reserves GPU memory for both LoRAs' factors: the host divides the memory before it loads the model."""
    clone = patcher.clone()
    factors = [d.factors() for part in parts for d in part.file.modules.values()]
    count = sum(up.numel() + down.numel() for up, down, _ in filter(None, factors))
    clone.add_extra_preserved_memory_during_sampling(count * patcher.model.computation_dtype.itemsize)
    return clone
