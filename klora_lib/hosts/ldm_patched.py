"""reForge and Forge Classic (``ldm_patched``): the patches of a model patcher do not name the file they came from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..late import Late
from .forges import Forges, read_loaded_loras

if TYPE_CHECKING:
    from ..engine import layers
    from ..engine.site import Site
    from .contract import TextPart
else:
    layers = Late("klora_lib.engine.layers")

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
TEXT_SUFFIX = " (K-LoRA text encoder)"  # at the end of the path under which we load a text part


def find_missing() -> list[str]:
    """What this WebUI lacks of this family."""
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if find_spec("ldm_patched") is None or find_spec("ldm_patched.modules.model_patcher") is None:
        missing.append("ldm_patched.modules.model_patcher")
    return missing


def make_host() -> LdmPatched:
    return LdmPatched(sys.modules["networks"])


class LdmPatched(Forges):
    """Fulfils ``contract.Host``.

    When a sampler prepares its pass, before ``launch_sampling``, the patcher merges its LoRAs.  Layers that stay in host
    memory instead get functions that add the LoRAs at every forward.  Both last until another patcher is loaded.
    """

    name = NAME

    def find_sites(self) -> Mapping[str, Site]:
        return layers.list_sites(self.get_model().forge_objects.unet.model.diffusion_model)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart], keep: bool = True) -> None:
        """Have the host's patchers hold all LoRAs that it loaded except the pair, and then the pair's text parts.

        The list of what is loaded is stored where the host stores it, so that it loads again for a job with other LoRAs.
        """
        parts, model = list(parts), self.get_model()
        wanted = drop_loads(read_loaded_loras(model), {part.entry.path for part in parts})
        unet, clip = self.make_patchers(model, wanted)
        for part in parts:
            if part.file.text:
                path, text = part.entry.path + TEXT_SUFFIX, dict(part.file.text)
                _, clip = self.networks.load_lora_for_models(None, clip, text, 0.0, part.te, filename=path)
                wanted.append([path, 0.0, part.te])
        after = model.forge_objects_after_applying_lora
        after.unet = model.forge_objects.unet = unet
        after.clip = model.forge_objects.clip = clip
        model.current_lora_hash = str(wanted)
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def make_patchers(self, model: Any, wanted: list[list[Any]]) -> tuple[Any, Any]:
        """The denoiser's patcher and the text encoders with the LoRAs of ``wanted``; the present ones if they have these."""
        if wanted == read_loaded_loras(model):
            after = model.forge_objects_after_applying_lora
            return after.unet, after.clip
        unet, clip = model.forge_objects_original.unet, model.forge_objects_original.clip
        for path, weight, te in wanted:
            lora = self.networks.load_lora_state_dict(path)
            unet, clip = self.networks.load_lora_for_models(unet, clip, lora, weight, te, filename=path)
        return unet, clip


def drop_loads(loads: list[list[Any]], paths: set[str]) -> list[list[Any]]:
    """``loads`` without the files at ``paths``, and without what an earlier K-LoRA job added."""
    return [load for load in loads if load[0] not in paths and not load[0].endswith(TEXT_SUFFIX)]
