"""The built-in Lora extension of A1111, small: lazy merging in patched forwards, with a backup a layer."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


class OnDisk:
    def __init__(self, name: str, filename: str, alias: str | None = None):
        self.name, self.filename, self.alias = name, filename, alias or name
        self.shorthash: str | None = None

    def read_hash(self) -> None:
        self.shorthash = f"hash{len(self.name):08d}"


class Module:
    def __init__(self, network: Network, key: str, tensors: dict[str, Tensor]):
        self.network, self.key, self.tensors = network, key, tensors

    @property
    def multiplier(self) -> float:
        return self.network.te_multiplier if self.key.startswith("transformer") else self.network.unet_multiplier

    def updown(self, weight: Tensor) -> Tensor:
        return updown(self.tensors, weight) * self.multiplier


class Network:
    def __init__(self, name: str, network_on_disk: OnDisk):
        self.name, self.network_on_disk = name, network_on_disk
        self.mentioned_name: str | None = None
        self.te_multiplier = self.unet_multiplier = 1.0
        self.dyn_dim: int | None = None
        self.modules: dict[str, Module] = {}
        self.bundle_embeddings: dict[str, Any] = {}
        self.mtime = os.path.getmtime(network_on_disk.filename)


def product(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, None)
    return nn.functional.linear(x, weight)


def wanted_names(loaded: list[Network]) -> tuple[Any, ...]:
    return tuple((n.name, n.te_multiplier, n.unet_multiplier, n.dyn_dim) for n in loaded)


def listing(lora_dir: Path) -> types.ModuleType:
    """The module ``networks`` with the files that it lists, as every host keeps them."""
    module = types.ModuleType("networks")
    listed: dict[str, OnDisk] = {}
    aliases: dict[str, OnDisk] = {}
    forbidden: dict[str, int] = {}

    def list_available_networks() -> None:
        """An alias is what the trainer called the file (ss_output_name); one that two files share is forbidden."""
        for found in (listed, aliases, forbidden):
            found.clear()
        forbidden.update({"none": 1, "Addams": 1})
        for path in sorted(lora_dir.rglob("*.safetensors")):
            with safetensors.safe_open(path, "pt") as file:
                entry = OnDisk(path.stem, str(path), (file.metadata() or {}).get("ss_output_name"))
            listed[entry.name] = entry
            if entry.alias in aliases:
                forbidden[entry.alias.lower()] = 1
            aliases[entry.name] = aliases[entry.alias] = entry

    module.__dict__.update(
        available_networks=listed,
        available_network_aliases=aliases,
        forbidden_network_aliases=forbidden,
        loaded_networks=[],
        list_available_networks=list_available_networks,
    )
    list_available_networks()
    return module


def read(filename: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(filename)


def by_layer(file: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a kohya file by layer, which is named as in the model, with _ for every dot."""
    layers: dict[str, dict[str, Tensor]] = {}
    for full, tensor in file.items():
        layer, _, part = full.partition(".")
        name = layer.replace("lora_unet", "diffusion_model").replace("lora_te_text_model", "transformer_text_model")
        layers.setdefault(name, {})[part] = tensor
    return layers


def updown(tensors: dict[str, Tensor], weight: Tensor) -> Tensor:
    """ΔW in the shape of ``weight``."""
    up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
    return (up @ down).reshape(weight.shape) * (float(tensors["alpha"]) / down.shape[0])


def make(shared: types.ModuleType, lora_dir: Path) -> types.ModuleType:
    """The module ``networks`` of A1111.  It patches nothing before ``patch`` is called."""
    module = listing(lora_dir)
    loaded: list[Network] = module.loaded_networks
    in_memory: dict[str, Network] = {}

    def load_network(name: str, network_on_disk: OnDisk) -> Network:
        network = Network(name, network_on_disk)
        for key, tensors in by_layer(read(network_on_disk.filename)).items():
            if key in shared.sd_model.network_layer_mapping:
                nn.Linear(1, 1)  # the real one makes layers for the tensors, which torch fills at random first
                network.modules[key] = Module(network, key, tensors)
        return network

    def load_networks(names: list[str], te: list[float], unet: list[float], dyn: list[int | None]) -> None:
        before = {n.name: n for n in loaded}
        loaded.clear()
        for i, name in enumerate(names):
            on_disk = module.available_network_aliases.get(name)
            if on_disk is None:
                continue
            network = before.get(name) or in_memory.get(name) or load_network(name, on_disk)
            in_memory[name] = network
            network.mentioned_name = name
            on_disk.read_hash()
            network.te_multiplier, network.unet_multiplier, network.dyn_dim = te[i], unet[i], dyn[i]
            loaded.append(network)

    def restore(layer: nn.Module) -> None:
        for field, kept in (("weight", "network_weights_backup"), ("bias", "network_bias_backup")):
            backup = getattr(layer, kept, None)
            if backup is not None:
                getattr(layer, field).copy_(backup)

    def reset(layer: nn.Module) -> None:
        layer.network_current_names = ()
        layer.network_weights_backup = layer.network_bias_backup = None

    def apply(layer: nn.Module) -> None:
        name = getattr(layer, "network_layer_name", None)
        if name is None:
            return
        wanted, current = wanted_names(loaded), getattr(layer, "network_current_names", ())
        if wanted and getattr(layer, "network_weights_backup", None) is None:
            if current:
                raise RuntimeError(f"{name}: merged, and no backup")
            layer.network_weights_backup = layer.weight.clone()
            layer.network_bias_backup = None if layer.bias is None else layer.bias.clone()
        if current == wanted:
            return
        module.network_restore_weights_from_backup(layer)
        for network in loaded:
            if name in network.modules:
                layer.weight.copy_(layer.weight + network.modules[name].updown(layer.weight))
        layer.network_current_names = wanted

    def forward_of(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(layer: nn.Module, x: Tensor) -> Tensor:
            if not shared.opts.lora_functional:
                module.network_apply_weights(layer)
                return original(layer, x)
            if not loaded:
                return original(layer, x)
            module.network_restore_weights_from_backup(layer)
            module.network_reset_cached_weight(layer)
            y = original(layer, x)
            for network in loaded:
                if (extra := network.modules.get(getattr(layer, "network_layer_name", ""))) is not None:
                    y = y + product(layer, x, extra.updown(layer.weight))
            return y

        return forward

    def patch() -> None:
        module.originals = {kind: kind.forward for kind in PATCHED}
        for kind, original in module.originals.items():
            kind.forward = forward_of(original)

    def undo() -> None:
        for kind, original in module.originals.items():
            kind.forward = original
        module.originals = None

    module.__dict__.update(
        networks_in_memory=in_memory,
        originals=None,
        load_network=load_network,
        load_networks=load_networks,
        network_apply_weights=apply,
        network_restore_weights_from_backup=restore,
        network_reset_cached_weight=reset,
        patch=patch,
        undo=undo,
    )
    return module


def name_layers(sd_model: Any) -> None:
    """Every module of the model by the name under which LoRA files find it; again after another model was loaded."""
    sd_model.network_layer_mapping = {}
    for root in (sd_model.cond_stage_model, sd_model.model):
        for path, layer in root.named_modules():
            layer.network_layer_name = path.replace(".", "_")
            sd_model.network_layer_mapping[layer.network_layer_name] = layer
