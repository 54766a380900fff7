"""reForge and Forge Classic (``ldm_patched``): a model patcher whose patches do not say what file they came from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from ..engine.layers import sites_of
from ..engine.site import Site
from .contract import TextPart
from .forges import Forges, loaded_loras

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


class LdmPatched(Forges):
    """Fulfils ``contract.Host``.

    When a sampler prepares its pass, before ``launch_sampling``, the patcher merges its LoRAs (layers that stay in host
    memory get functions that add them at every forward).  They stay there until another patcher is loaded.
    """

    name = NAME

    def sites(self) -> Mapping[str, Site]:
        return sites_of(self.model().forge_objects.unet.model.diffusion_model)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Have the host's patchers carry everything it loaded but the pair, and then the pair's text parts.

        What is loaded is written where the host writes it, so that it loads afresh for a job that wants something else.
        """
        parts, model = list(parts), self.model()
        wanted = without(loaded_loras(model), {part.entry.path for part in parts})
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
        if wanted == loaded_loras(model):
            after = model.forge_objects_after_applying_lora
            return after.unet, after.clip
        unet, clip = model.forge_objects_original.unet, model.forge_objects_original.clip
        for path, weight, te in wanted:
            lora = self.networks.load_lora_state_dict(path)
            unet, clip = self.networks.load_lora_for_models(unet, clip, lora, weight, te, filename=path)
        return unet, clip


def without(loads: list[list[Any]], paths: set[str]) -> list[list[Any]]:
    """What was loaded for the prompt, less the files at ``paths`` and what an earlier job of ours added."""
    return [load for load in loads if load[0] not in paths and not load[0].endswith(OURS)]
