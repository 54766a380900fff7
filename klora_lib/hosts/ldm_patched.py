"""reForge and Forge Classic (``ldm_patched``): a model patcher whose patches do not say what file they came from."""

from __future__ import annotations

import sys
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..engine.site import Site
from ..errors import HostError
from .contract import TextPart
from .family import Family, patching_aside, predicted_progress
from .layers import sites_of

NAME = "reForge / Forge Classic"
NEEDED = (
    "available_networks",
    "available_network_aliases",
    "forbidden_network_aliases",
    "load_networks",
    "load_lora_for_models",
    "load_lora_state_dict",
    "list_available_networks",
)
OURS = " (K-LoRA text encoder)"  # ends the path of what we loaded


def lacks() -> list[str]:
    """What of this family is not there."""
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if find_spec("ldm_patched") is None or find_spec("ldm_patched.modules.model_patcher") is None:
        missing.append("ldm_patched.modules.model_patcher")
    return missing


def make() -> LdmPatched:
    return LdmPatched(sys.modules["networks"])


class LdmPatched(Family):
    """Fulfils ``contract.Host``.

    When a sampler prepares its pass, before ``launch_sampling``, the patcher merges its LoRAs (layers that stay in host
    memory get functions that add them at every forward).  They stay there until another patcher is loaded.
    """

    name = NAME

    def model(self) -> Any:
        from modules import shared

        if not hasattr(shared.sd_model, "forge_objects"):
            raise HostError("no checkpoint is loaded")
        return shared.sd_model

    def device(self) -> torch.device:
        return torch.device(self.model().forge_objects.unet.load_device)

    def sites(self) -> Mapping[str, Site]:
        return sites_of(self.model().forge_objects.unet.model.diffusion_model)

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Nothing is pending: a sampler is launched after the model has been loaded and its LoRAs merged."""

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Have the host's patchers carry everything it loaded but the pair, and then the pair's text parts.

        What is loaded is written where the host writes it, so that it loads afresh for a job that wants something else.
        """
        parts, model = list(parts), self.model()
        wanted = without(loaded(model), {part.entry.path for part in parts})
        unet, clip = self.patchers(model, wanted)
        for part in parts:
            if part.file.text:
                path, text = part.entry.path + OURS, dict(part.file.text)
                _, clip = self.networks.load_lora_for_models(None, clip, text, 0.0, part.te, filename=path)
                wanted.append([path, 0.0, part.te])
        after = model.forge_objects_after_applying_lora
        after.unet = model.forge_objects.unet = unet
        after.clip = model.forge_objects.clip = clip
        model.current_lora_hash = str(wanted)
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def patchers(self, model: Any, wanted: list[list[Any]]) -> tuple[Any, Any]:
        """The denoiser's patcher and the text encoders with ``wanted`` on them; those already there if they are right."""
        if wanted == loaded(model):
            after = model.forge_objects_after_applying_lora
            return after.unet, after.clip
        unet, clip = model.forge_objects_original.unet, model.forge_objects_original.clip
        for path, weight, te in wanted:
            lora = self.networks.load_lora_state_dict(path)
            unet, clip = self.networks.load_lora_for_models(unet, clip, lora, weight, te, filename=path)
        return unet, clip

    def around_rewrites(self, aside: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        return patching_aside(self.model().forge_objects.unet, aside)

    def noise(self, denoiser: Any, sigma: torch.Tensor) -> float:
        """By the model's own table: here DDIM, PLMS and UniPC, too, hand over a noise level and no timestep."""
        return predicted_progress(self.model().forge_objects.unet.model.model_sampling, sigma)


def loaded(model: Any) -> list[list[Any]]:
    """[path, denoiser weight, text encoder weight] of every LoRA on ``model``, in the order they were added.

    The host keeps this list, written out, under the name of a hash: it loads only what differs from it.
    """
    try:
        return [[str(path), weight, te] for path, weight, te in literal_eval(model.current_lora_hash)]
    except (TypeError, ValueError, SyntaxError):
        told = f"its list of loaded LoRAs reads {model.current_lora_hash!r}"
        raise HostError(f"this WebUI's LoRA loader has changed: {told}") from None


def without(loads: list[list[Any]], paths: set[str]) -> list[list[Any]]:
    """What was loaded for the prompt, less the files at ``paths`` and what an earlier job of ours added."""
    return [load for load in loads if load[0] not in paths and not load[0].endswith(OURS)]
