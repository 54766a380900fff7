"""AUTOMATIC1111's WebUI (1.10 and later): lazy per-layer merging in the Lora extension's patched forwards."""

from __future__ import annotations

import copy
import inspect
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..engine.layers import sites_of
from ..engine.site import Site
from ..errors import HostError
from ..patching import replaced
from .contract import Aside, TextPart
from .family import Family

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
KEPT = ("network_current_names", "network_weights_backup", "network_bias_backup")  # on a layer, by the loader


def lacks() -> list[str]:
    """What of this family's LoRA loader is not there.

    reForge keeps every one of these names, as empty stubs: what tells the Forges apart is the package they all share.
    """
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if getattr(networks, "originals", None) is None or find_spec("modules_forge") is not None:
        missing.append("layers that merge at their own forward")
    return missing or [name for name in KEPT if name not in mentioned(networks.network_reset_cached_weight, KEPT)]


def mentioned(function: Any, names: tuple[str, ...]) -> set[str]:
    """Which of ``names`` a function of the loader speaks of; all of them where it has no code that can be looked at."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return set(names) if code is None else {*code.co_names, *map(str, code.co_consts)}


def make() -> A1111:
    return A1111(sys.modules["networks"])


class A1111(Family):
    """Fulfils ``contract.Host``."""

    name = NAME

    def device(self) -> torch.device:
        from modules import devices

        return torch.device(devices.device)

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

    @contextmanager
    def around_rewrites(self, aside: Aside) -> Iterator[None]:
        """A layer is merged anew at its own forward when the set of networks, or a multiplier, is another than before.

        The host then takes its backup of what the weight holds, or puts its backup in the weight's place.
        """
        networks = self.networks
        apply, restore = networks.network_apply_weights, networks.network_restore_weights_from_backup

        def apply_aside(layer: nn.Module) -> None:  # at every forward of every layer: be quick
            if self.due(layer):
                with aside((layer,)):
                    apply(layer)
            else:
                apply(layer)

        def restore_aside(layer: nn.Module) -> None:
            if backed_up(layer):
                with aside((layer,)):
                    restore(layer)

        with (
            replaced(networks, "network_apply_weights", apply_aside),
            replaced(networks, "network_restore_weights_from_backup", restore_aside),
        ):
            yield

    def due(self, layer: nn.Module) -> bool:
        """Whether the host will write this layer's weight, or take a backup of it, at its next forward."""
        if getattr(layer, "network_layer_name", None) is None:
            return False
        wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in self.networks.loaded_networks)
        return getattr(layer, "network_current_names", ()) != wanted or (bool(wanted) and not backed_up(layer))

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Drop the pair from the loaded networks and append networks that hold text-encoder modules only.

        The appended networks carry names of their own, so the host never takes one for the whole LoRA in a later job.
        """
        loaded, parts = self.networks.loaded_networks, list(parts)
        names = {part.entry.name for part in parts}
        tagged = [n for n in loaded if n.network_on_disk.name in names]
        loaded[:] = [n for n in loaded if n not in tagged] + [without_modules(n) for n in tagged if n.bundle_embeddings]
        self.key_prompt_cache(network_data, parts)
        for part in parts:
            if part.file.text:
                loaded.append(self.text_network(part))
                if not loaded[-1].modules:
                    p.comment(f"K-LoRA: this WebUI found no place for the text encoder part of {part.entry.name!r}")
        self.add_hashes(p, parts)

    def text_network(self, part: TextPart) -> Any:
        """The host's own network over ``part``'s text-encoder tensors, read by its own loader from a file of these.

        Windows keeps a mapped file that is still in use: it then stays behind in the temporary folder.
        The job's later noise is as without us: nothing is drawn from the host's generator.
        """
        listed = copy.copy(self.networks.available_networks[part.entry.name])
        with tempfile.TemporaryDirectory(prefix="klora-", ignore_cleanup_errors=True) as folder:
            listed.filename = os.path.join(folder, "text.safetensors")
            save_file({k: t.contiguous() for k, t in part.file.text.items()}, listed.filename)
            with torch.random.fork_rng(devices=()):  # torch fills the layers that the host makes at random first
                network = self.networks.load_network(own_name(part.entry.name), listed)
        network.dyn_dim, network.mentioned_name = None, part.entry.name
        return with_fixed_weights(network, te_multiplier=part.te, unet_multiplier=0.0)


def with_fixed_weights(network: Any, **weights: float) -> Any:
    """``network`` of a class of its own, whose weights nobody changes.

    Regional Prompter switches off, region by region, whatever network the region's prompt does not name.
    """

    def fixed(weight: float) -> property:
        return property(lambda self: weight, lambda self, other: None)

    cls = type(network)
    network.__class__ = type(cls.__name__, (cls,), {name: fixed(weight) for name, weight in weights.items()})
    return network


def without_modules(network: Any) -> Any:
    """The network without layers, kept only so that the host can unregister the embeddings that came with it."""
    bare = copy.copy(network)
    bare.name, bare.modules = own_name(network.name), {}
    return bare


def backed_up(layer: nn.Module) -> bool:
    """Whether the host has a backup of the layer."""
    return any(getattr(layer, f"network_{name}_backup", None) is not None for name in ("weights", "bias"))


def own_name(name: str) -> str:
    return f"{name} (K-LoRA text encoder)"
