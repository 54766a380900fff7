"""AUTOMATIC1111's WebUI (1.7 and later): lazy per-layer merging in the Lora extension's patched forwards."""

from __future__ import annotations

import copy
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..core.schedule import noise_progress
from ..engine.site import Site
from ..errors import HostError, SettingsError
from .contract import Call, Entry, Tag, TextPart
from .layers import sites_of

NAME = "AUTOMATIC1111"
NEEDED = (
    "available_networks",
    "available_network_aliases",
    "forbidden_network_aliases",
    "loaded_networks",
    "load_network",
    "list_available_networks",
    "network_apply_weights",
    "network_restore_weights_from_backup",
    "network_reset_cached_weight",
)


def lacks() -> list[str]:
    """What of this family's LoRA loader is not there.  Forks keep the names as stubs: only A1111's has ``originals``."""
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    return missing if missing or getattr(networks, "originals", None) is not None else ["patched layers"]


def make() -> A1111:
    return A1111(sys.modules["networks"])


class A1111:
    """Fulfils ``contract.Host``."""

    name = NAME

    def __init__(self, networks: ModuleType):
        self.networks = networks

    def loras(self) -> list[str]:
        return sorted(self.networks.available_networks, key=str.casefold)

    def refresh(self) -> None:
        self.networks.list_available_networks()

    def find(self, name: str) -> Entry | None:
        listed = self.networks.available_networks.get(name)
        if listed is None and name.lower() not in self.networks.forbidden_network_aliases:  # two files share the alias
            listed = self.networks.available_network_aliases.get(name)
        if listed is None:
            return None
        return Entry(listed.name, listed.filename)

    def device(self) -> torch.device:
        from modules import devices

        return torch.device(devices.device)

    def checkpoint(self) -> str:
        from modules import shared

        return shared.sd_model.sd_checkpoint_info.name_for_extra

    def sites(self) -> Mapping[str, Site]:
        from modules import sd_unet, shared

        if sd_unet.current_unet is not None:
            label = sd_unet.current_unet.option.label
            raise HostError(f"the SD Unet option replaces the model by {label!r}; set it to None")
        return sites_of(shared.sd_model.model.diffusion_model)

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """The host merges a layer at its first forward, over whatever the weight holds then: have it done now.

        With lora_functional it merges nothing, but undoes an earlier merge at every forward.
        """
        from modules import shared

        for module in modules:
            if shared.opts.lora_functional:
                self.networks.network_restore_weights_from_backup(module)
                self.networks.network_reset_cached_weight(module)
            else:
                self.networks.network_apply_weights(module)

    def take_tags(self, network_data: Any, entries: Iterable[Entry]) -> dict[str, Tag]:
        names = {e.name for e in entries}
        taken: dict[str, Tag] = {}
        for kind in ("lora", "lyco"):  # the second is an alias of the first
            if kind not in network_data:
                continue
            left = []
            for params in network_data[kind]:
                entry = self.find(params.positional[0]) if params.positional else None
                if entry is not None and entry.name in names:
                    taken[entry.name] = read_tag(params)
                else:
                    left.append(params)
            network_data[kind] = left
        return taken

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Drop the pair from the loaded networks and append networks that hold text-encoder modules only.

        The tags put into ``network_data`` never load anything: they are what the prompt cache is keyed on.  The
        appended networks carry names of their own, so the host never takes one for the whole LoRA in a later job.
        """
        from modules import extra_networks

        loaded, parts = self.networks.loaded_networks, list(parts)
        names = {part.entry.name for part in parts}
        tagged = [n for n in loaded if n.network_on_disk.name in names]
        loaded[:] = [n for n in loaded if n not in tagged] + [without_modules(n) for n in tagged if n.bundle_embeddings]
        tags = [extra_networks.ExtraNetworkParams(items=[x.entry.name, str(x.te), "0"]) for x in parts]
        network_data["lora"] = [*network_data.get("lora", []), *tags]
        loaded.extend(self.text_network(part) for part in parts if part.file.text)
        self.add_hashes(p, parts)

    def text_network(self, part: TextPart) -> Any:
        """The host's own network over ``part``'s text-encoder tensors, read by its own loader from a file of these."""
        listed = copy.copy(self.networks.available_networks[part.entry.name])
        with tempfile.TemporaryDirectory(prefix="klora-") as folder:
            listed.filename = os.path.join(folder, "text.safetensors")
            save_file({k: t.contiguous() for k, t in part.file.text.items()}, listed.filename)
            network = self.networks.load_network(own_name(part.entry.name), listed)
        network.te_multiplier, network.unet_multiplier, network.dyn_dim = part.te, 0.0, None
        network.mentioned_name = part.entry.name
        return network

    def add_hashes(self, p: Any, parts: Iterable[TextPart]) -> None:
        """Both LoRAs among the infotext's hashes, as the host writes them for tags."""
        from modules import shared

        if not shared.opts.lora_add_hashes_to_infotext:
            return
        hashes = dict(getattr(p, "lora_hashes", {}))
        for part in parts:
            listed = self.networks.available_networks[part.entry.name]
            listed.read_hash()
            hashes[part.entry.name.translate(str.maketrans("", "", ":,"))] = listed.shorthash
        p.lora_hashes = hashes
        p.extra_generation_params["Lora hashes"] = ", ".join(f"{k}: {v}" for k, v in hashes.items())

    def around_sampling(self, p: Any, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """A sampler object lives no longer than its job, and what its launch raises is not swallowed.

        txt2img makes one for every pass, img2img one for all batches of a job: it is wrapped once.
        """
        sampler = p.sampler
        if getattr(getattr(sampler, "launch_sampling", None), "klora_job", None) is p:
            return
        if not hasattr(sampler, "launch_sampling"):
            raise HostError(f"the sampler {p.sampler_name!r} does not run through this WebUI's launch_sampling")
        launch = sampler.launch_sampling

        def launch_sampling(steps: int, func: Callable[[], Any]) -> Any:
            with context(steps):
                return launch(steps, func)

        launch_sampling.klora_job = p  # type: ignore[attr-defined]
        sampler.launch_sampling = launch_sampling

    @contextmanager
    def before_model_swap(self, p: Any, act: Callable[[], None]) -> Iterator[None]:
        """The refiner loads its weights into the very modules that carry ours, from inside the denoiser's forward."""
        if getattr(p, "refiner_checkpoint_info", None) is None:
            yield
            return
        from modules import sd_models

        reload = sd_models.reload_model_weights

        def reload_model_weights(*args: Any, **kwargs: Any) -> Any:
            act()
            return reload(*args, **kwargs)

        sd_models.reload_model_weights = reload_model_weights
        try:
            yield
        finally:
            sd_models.reload_model_weights = reload

    def call(self, params: Any) -> Call:
        denoiser = params.denoiser
        return Call(denoiser.step, denoiser.total_steps, lambda: noise_of(denoiser, params.sigma))

    def start(self, p: Any) -> float:
        """Only a pass that began from an image has given its denoiser an initial latent."""
        if p.sampler.model_wrap_cfg.init_latent is None:
            return 0.0
        return 1.0 - min(float(p.denoising_strength), 1.0)

    def fixed_steps(self, p: Any) -> bool:
        """An adaptive sampler is told neither the noise levels nor their number."""
        known = {"sigmas", "sigma_sched", "timesteps", "n"}
        return bool(known & set(inspect.signature(p.sampler.func).parameters))

    def stop_sampling(self) -> BaseException:
        from modules import sd_samplers_common

        return sd_samplers_common.InterruptedException()


def noise_of(denoiser: Any, sigma: torch.Tensor) -> float:
    """Progress by noise.  DDIM, PLMS and UniPC hand over a timestep under the name of sigma."""
    wrap, most = denoiser.inner_model, sigma.max()
    if not hasattr(wrap, "sigma_to_t"):
        return noise_progress(float(most), len(denoiser.alphas))
    return noise_progress(float(wrap.sigma_to_t(most.to(wrap.sigmas), quantize=False)), len(wrap.sigmas))


def read_tag(params: Any) -> Tag:
    """<lora:name:te:unet>, <lora:name:te=…:unet=…>: as the host reads them, unet following te."""
    positional, named, tag = params.positional, params.named, f"<lora:{':'.join(params.items)}>"
    if len(positional) > 3 or "dyn" in named:
        raise SettingsError(f"the tag {tag} asks for a dynamic rank, which a LoRA of the pair cannot have", "prompt")
    try:
        te = float(named.get("te", positional[1] if len(positional) > 1 else 1.0))
        unet = float(named.get("unet", positional[2] if len(positional) > 2 else te))
    except ValueError:
        raise SettingsError(f"the tag {tag} has a weight that is no number", "prompt") from None
    return Tag(te, unet)


def without_modules(network: Any) -> Any:
    """The network without layers, kept only so that the host can unregister the embeddings that came with it."""
    bare = copy.copy(network)
    bare.name, bare.modules = own_name(network.name), {}
    return bare


def own_name(name: str) -> str:
    return f"{name} (K-LoRA text encoder)"
