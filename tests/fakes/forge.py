"""Forge: LoRAs are registered on clones of a model patcher, and merged when a patcher that is not loaded yet is loaded."""

from __future__ import annotations

import types
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .host import BASE, Checkpoint, FakeHost, package
from .processing import activate
from .samplers import SIGMAS
from .unet import TextEncoder, UNet


class Predictor:
    """The discrete one: the timestep of a noise level is its nearest neighbour's."""

    sigma_max = SIGMAS[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - SIGMAS[:, None].log()).abs().argmin(0)


class KModel(nn.Module):
    storage_dtype = computation_dtype = torch.float32

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.diffusion_model, self.predictor = denoiser, Predictor()


class LoraLoader:
    """Merges into new parameters, the old ones being the backup; goes by the keys of the patches alone."""

    def __init__(self, model: nn.Module):
        self.model, self.backup, self.loaded_hash = model, dict[str, nn.Parameter](), str([])

    def refresh(self, lora_patches: dict[tuple, dict[str, list]]) -> None:
        hashes = str(list(lora_patches))
        if hashes == self.loaded_hash:
            return
        for key, weight in self.backup.items():
            put(self.model, key, weight)
        self.backup = {}
        for patches in lora_patches.values():
            for key, entries in patches.items():
                weight = self.model.get_parameter(key)
                self.backup.setdefault(key, weight)
                for strength, tensors in entries:
                    weight = weight + strength * networks.updown(tensors, weight)
                put(self.model, key, nn.Parameter(weight, requires_grad=False))
        self.loaded_hash = hashes


def put(model: nn.Module, key: str, weight: nn.Parameter) -> None:
    parent, _, child = key.rpartition(".")
    setattr(model.get_submodule(parent), child, weight)


class ModelPatcher:
    load_device = torch.device("cpu")

    def __init__(self, model: nn.Module):
        self.model, self.lora_patches = model, dict[tuple, dict[str, list]]()
        self.preserved = 0
        if not hasattr(model, "lora_loader"):
            model.lora_loader = LoraLoader(model)
        self.lora_loader = model.lora_loader

    def clone(self) -> ModelPatcher:
        new = ModelPatcher(self.model)
        new.lora_patches = self.lora_patches.copy()
        return new

    def add_extra_preserved_memory_during_sampling(self, size: int) -> None:
        self.preserved += size

    def add_patches(
        self,
        *,
        filename: str,
        patches: dict[str, Any],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
        online_mode: bool = False,
    ) -> set[str]:
        known = patches.keys() & {name for name, _ in self.model.named_parameters()}
        identifier = (filename, strength_patch, strength_model, online_mode)
        self.lora_patches[identifier] = {key: [(strength_patch, patches[key])] for key in known}
        return known

    def refresh_loras(self) -> None:
        self.lora_loader.refresh(self.lora_patches)


class Clip:
    def __init__(self, model: TextEncoder, patcher: Any):
        self.cond_stage_model, self.patcher = model, patcher

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, **kwargs: Any) -> set[str]:
        return self.patcher.add_patches(**kwargs)


class Objects:
    def __init__(self, unet: ModelPatcher, clip: Clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self) -> Objects:
        return Objects(self.unet, self.clip)


def load_lora_for_models(
    model: ModelPatcher | None,
    clip: Clip | None,
    lora: dict[str, Tensor],
    strength_model: float,
    strength_clip: float,
    filename: str = "default",
    online_mode: bool = False,
) -> tuple[ModelPatcher | None, Clip | None]:
    """A file that has more than 12 modules too many is left alone as a whole."""
    left, found = networks.by_layer(lora), []
    for owner, root in ((model, model and model.model), (clip, clip and clip.cond_stage_model)):
        keys = {} if root is None else {name.replace(".", "_"): f"{name}.weight" for name, _ in root.named_modules()}
        found.append((owner, {keys[layer]: left.pop(layer) for layer in list(left) if layer in keys}))
    if len(left) > 12:
        return model, clip
    new = []
    for (owner, patches), strength in zip(found, (strength_model, strength_clip)):
        if owner is not None and patches:
            owner = owner.clone()
            owner.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=online_mode)
        new.append(owner)
    return new[0], new[1]


def get_weight_and_bias(layer: Any, weight_args: dict[str, Any], weight_fn: Any = None) -> tuple[Tensor, Any]:
    """What a layer computes with."""
    return layer.weight.to(**weight_args), layer.bias


class FakeForge(FakeHost):
    name = "Forge"
    reload = "forge_model_reload"
    part = "load_lora_for_models"
    accordion_is_a_function = True
    sigma_is_a_timestep = False
    patcher: type = ModelPatcher
    online = False  # whether LoRAs are added at every forward

    def __init__(self, lora_dir: Path):
        self.wanted = BASE
        self.on_gpu: list[ModelPatcher] = []
        super().__init__(lora_dir)

    @property
    def unet(self) -> UNet:
        return self.sd_model.forge_objects.unet.model.diffusion_model

    def load(self, checkpoint: Checkpoint) -> Any:
        unet, text = KModel(UNet(seed=checkpoint.seed)), TextEncoder(seed=checkpoint.seed)
        objects = Objects(self.patcher(unet), Clip(text, self.patcher(text)))
        return types.SimpleNamespace(
            model=unet,
            forge_objects=objects,
            forge_objects_original=objects.shallow_copy(),
            forge_objects_after_applying_lora=objects.shallow_copy(),
            current_lora_hash=str([]),
            sd_checkpoint_info=checkpoint,
        )

    def own_modules(self, lora_dir: Path) -> dict[str, types.ModuleType]:
        self.sd_models.forge_model_reload = self.forge_model_reload  # type: ignore[attr-defined]
        module = networks.listing(lora_dir)
        module.__dict__.update(load_lora_for_models=load_lora_for_models, load_networks=self.load_networks)
        packages = {name: package(name) for name in ("modules_forge", "backend", "backend.patcher")}
        parts = (
            package("backend.patcher.base", ModelPatcher=ModelPatcher),
            package("backend.args", dynamic_args={}),
            package("backend.operations", get_weight_and_bias=get_weight_and_bias),
        )
        return {"networks": module, **packages, **{part.__name__: part for part in parts}}

    def forge_model_reload(self) -> None:
        """Another checkpoint is another model."""
        if self.wanted != self.sd_model.sd_checkpoint_info:
            self.shared.sd_model = self.load(self.wanted)  # type: ignore[attr-defined]
            self.on_gpu.clear()

    def load_networks(self, names: list[str], te: list[float], unet: list[float], dyn: Any = None) -> None:
        """Registers patches, unless the same files and weights were the last that it registered."""
        found, model = self.networks, self.sd_model
        found.loaded_networks.clear()
        targets = []
        for i, name in enumerate(names):
            on_disk = found.available_network_aliases[name]
            on_disk.read_hash()
            found.loaded_networks.append(types.SimpleNamespace(mentioned_name=name, network_on_disk=on_disk))
            targets.append([on_disk.filename, unet[i], te[i], self.online])
        if model.current_lora_hash == str(targets):
            return
        model.current_lora_hash = str(targets)
        objects = model.forge_objects
        objects.unet, objects.clip = model.forge_objects_original.unet, model.forge_objects_original.clip
        for filename, strength, strength_te, online in targets:
            tensors = networks.read(filename)
            objects.unet, objects.clip = found.load_lora_for_models(
                objects.unet, objects.clip, tensors, strength, strength_te, filename=filename, online_mode=online
            )
        model.forge_objects_after_applying_lora = objects.shallow_copy()

    def load_model_gpu(self, patcher: ModelPatcher) -> None:
        """Only what is not loaded is loaded, in the place of its clones, and merged then."""
        if not any(p is patcher for p in self.on_gpu):
            self.on_gpu[:] = [p for p in self.on_gpu if p.model is not patcher.model] + [patcher]
            patcher.refresh_loras()

    def undo(self) -> None:
        """No class is patched."""

    # --- one generation ---

    def generating(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def begin_batch(self) -> None:
        self.wanted = BASE
        self.sd_models.forge_model_reload()
        self.sd_model.forge_objects = self.sd_model.forge_objects_original.shallow_copy()

    def networks_active(self) -> None:
        self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()

    def encode(self, prompt: str) -> Tensor:
        clip = self.sd_model.forge_objects.clip
        self.load_model_gpu(clip.patcher)
        return clip.cond_stage_model(prompt)

    def before_sampling(self, p: Any, x: Tensor, noise: Tensor) -> None:
        """Before the hires pass the hook is called twice, on either side of the patchers' reset."""
        if p.is_hr_pass:
            super().before_sampling(p, x, noise)
        self.networks_active()
        super().before_sampling(p, x, noise)

    def sampling_prepare(self) -> None:
        self.load_model_gpu(self.sd_model.forge_objects.unet)

    def swap_model(self, p: Any, info: Checkpoint) -> None:
        """The prompt's networks are activated once more, for the new model."""
        self.wanted = info
        self.sd_models.forge_model_reload()
        activate(p, p.extra_network_data)
        p.setup_conds()
        self.sampling_prepare()
