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
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import HostError
from ..late import Late
from ..patching import replace_attribute
from .family import Family

if TYPE_CHECKING:
    from ..engine import layers
    from ..engine.site import Site
    from .contract import PutAside, TextPart
else:
    layers = Late("klora_lib.engine.layers")

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
# what the loader sets on a layer
LAYER_ATTRIBUTES = ("network_current_names", "network_weights_backup", "network_bias_backup")


def find_missing() -> list[str]:
    """What this WebUI lacks of this family's LoRA loader.

    reForge has all these names too, but as empty functions.  A Forge is recognised by the package that all Forges share.
    """
    networks = sys.modules.get("networks")
    if networks is None:
        return ["built-in Lora extension"]
    missing = [name for name in NEEDED if not hasattr(networks, name)]
    if getattr(networks, "originals", None) is None or find_spec("modules_forge") is not None:
        missing.append("layers that merge at their own forward")
    if missing:
        return missing
    used = find_mentioned(networks.network_reset_cached_weight, LAYER_ATTRIBUTES)
    return [name for name in LAYER_ATTRIBUTES if name not in used]


def find_mentioned(function: Any, names: tuple[str, ...]) -> set[str]:
    """Which of ``names`` a function of the loader uses in its code; all of them if its code cannot be read."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    return set(names) if code is None else {*code.co_names, *map(str, code.co_consts)}


def make_host() -> A1111:
    return A1111(sys.modules["networks"])


class A1111(Family):
    """Fulfils ``contract.Host``."""

    name = NAME

    def get_device(self) -> torch.device:
        from modules import devices

        return torch.device(devices.device)

    def find_sites(self) -> Mapping[str, Site]:
        from modules import sd_unet, shared

        if sd_unet.current_unet is not None:
            label = sd_unet.current_unet.option.label
            raise HostError(f"the SD Unet option replaces the model by {label!r}; set it to None")
        return layers.list_sites(shared.sd_model.model.diffusion_model)

    def finish_merging(self, modules: Iterable[nn.Module]) -> None:
        """The host merges its LoRAs into a layer at the layer's first forward.  We write the weight, so this is done before.

        With the option lora_functional the host does not merge, but undoes an earlier merge at every forward.
        """
        from modules import shared

        for module in modules:
            if shared.opts.lora_functional:
                self.networks.network_restore_weights_from_backup(module)
                self.networks.network_reset_cached_weight(module)
            else:
                self.networks.network_apply_weights(module)

    @contextmanager
    def wrap_rewrites(self, put_aside: PutAside) -> Iterator[None]:
        """The host merges a layer again, at the layer's forward, when the list of networks or a multiplier has changed.

        It then backs up the weight, or writes its backup into the weight.
        """
        networks = self.networks
        apply, restore = networks.network_apply_weights, networks.network_restore_weights_from_backup

        def apply_aside(layer: nn.Module) -> None:  # called at every forward of every layer, so it must be fast
            if self.is_due(layer):
                with put_aside((layer,)):
                    apply(layer)
            else:
                apply(layer)

        def restore_aside(layer: nn.Module) -> None:
            if has_backup(layer):
                with put_aside((layer,)):
                    restore(layer)

        with (
            replace_attribute(networks, "network_apply_weights", apply_aside),
            replace_attribute(networks, "network_restore_weights_from_backup", restore_aside),
        ):
            yield

    def is_due(self, layer: nn.Module) -> bool:
        """Whether the host will write or back up this layer's weight at the layer's next forward."""
        if getattr(layer, "network_layer_name", None) is None:
            return False
        wanted = tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in self.networks.loaded_networks)
        return getattr(layer, "network_current_names", ()) != wanted or (bool(wanted) and not has_backup(layer))

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart], keep: bool = True) -> None:
        """Remove the pair from the loaded networks, and append networks that have text-encoder modules only.

        The appended networks have other names, so that the host does not use one as the whole LoRA in a later job.
        """
        loaded, parts = self.networks.loaded_networks, list(parts)
        names = {part.entry.name for part in parts}
        tagged = [n for n in loaded if n.network_on_disk.name in names]
        loaded[:] = [n for n in loaded if n not in tagged] + [copy_without_modules(n) for n in tagged if n.bundle_embeddings]
        self.key_prompt_cache(network_data, parts)
        for part in parts:
            if part.file.text:
                loaded.append(self.make_text_network(part))
                if not loaded[-1].modules:
                    p.comment(f"K-LoRA: this WebUI found no place for the text encoder part of {part.entry.name!r}")
        self.add_hashes(p, parts)

    def make_text_network(self, part: TextPart) -> Any:
        """The host's own network for ``part``'s text-encoder tensors, which its loader reads from a temporary file.

        Windows does not delete a mapped file that is in use: it may then stay in the temporary folder.
        The job's random numbers are the same as without K-LoRA: none is taken from the host's generator.
        """
        listed = copy.copy(self.networks.available_networks[part.entry.name])
        with tempfile.TemporaryDirectory(prefix="klora-", ignore_cleanup_errors=True) as folder:
            listed.filename = os.path.join(folder, "text.safetensors")
            save_file({k: t.contiguous() for k, t in part.file.text.items()}, listed.filename)
            with torch.random.fork_rng(devices=()):  # the host's new layers are first filled with random numbers
                network = self.networks.load_network(name_text_network(part.entry.name), listed)
        network.dyn_dim, network.mentioned_name = None, part.entry.name
        return fix_weights(network, te_multiplier=part.te, unet_multiplier=0.0)


def fix_weights(network: Any, **weights: float) -> Any:
    """Give ``network`` a new class in which these weights cannot be changed.  Returns ``network``.

    Regional Prompter sets the weights of each network that a region's prompt does not name to 0.
    """

    def make_fixed(weight: float) -> property:
        return property(lambda self: weight, lambda self, other: None)

    cls = type(network)
    network.__class__ = type(cls.__name__, (cls,), {name: make_fixed(weight) for name, weight in weights.items()})
    return network


def copy_without_modules(network: Any) -> Any:
    """A copy of the network without layers.  The host needs it to remove the embeddings that came with the file."""
    bare = copy.copy(network)
    bare.name, bare.modules = name_text_network(network.name), {}
    return bare


def has_backup(layer: nn.Module) -> bool:
    """Whether the host has a backup of the layer's weight or bias."""
    return any(getattr(layer, f"network_{name}_backup", None) is not None for name in ("weights", "bias"))


def name_text_network(name: str) -> str:
    return f"{name} (K-LoRA text encoder)"
