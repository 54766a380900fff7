"""Forge Neo 2.27 to 2.29, in the shapes of its sources of August and September 2026 (read file by file, never run).

A patcher adds LoRAs at every forward where the setting says so: a layer of "mixed precision" keeps them as matrices and
adds their product to its output, every other layer has functions of its weight.
"""

from __future__ import annotations

import types
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .forge import Clip, FakeForge
from .host import Checkpoint
from .neo_layers import ForgeWeights, PlainLinear, build, mixed_precision, wipe


class LoRAAdapter:
    def __init__(self, up: Tensor, down: Tensor, alpha: float):
        self.weights = (up, down, alpha, None, None, None)  # then mid, dora, reshape


class LoKrAdapter:
    def __init__(self, w1: Tensor, w2: Tensor):
        self.weights = (w1, w2)  # of what decomposes these


def merge(patches: Any, weight: Tensor, key: str) -> Tensor:
    for strength, v, *_ in patches:
        if isinstance(v, LoRAAdapter):
            up, down, alpha = v.weights[:3]
            weight += strength * alpha / down.shape[0] * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        elif v[0] == "diff":
            weight += strength * v[1][0]
        else:
            raise ValueError(f"{key!r} of type {v[0]!r} is not recognized")
    return weight


class OnlineLoRAPatch:
    def __init__(self, name: str, key: str, patch: list):
        self.name, self.key, self.patch = name, key, [patch]

    def __call__(self, weight: Tensor) -> Tensor:
        return merge(self.patch, weight, self.key)


def dynamic_entry(name: str, strength: float, v: Any, shape: torch.Size) -> dict[str, Any] | None:
    """An online LoRA in the form in which a layer adds it to its output; None where it has none."""
    entry = {"name": name, "strength": float(strength), "factor": 1.0}
    if isinstance(v, LoRAAdapter) and v.weights[0].dim() == 2 == v.weights[1].dim():
        up, down, alpha = v.weights[:3]
        return entry | {"kind": "lora", "factor": alpha / down.shape[0], "tensors": (down, up)}
    if isinstance(v, LoKrAdapter):
        return entry | {"kind": "lokr", "tensors": v.weights}
    if isinstance(v, tuple) and v[0] == "diff" and v[1][0].shape == shape:
        return entry | {"kind": "diff", "tensors": v[1]}
    return None


class ModelPatcher:
    load_device = torch.device("cpu")

    def __init__(self, model: nn.Module):
        self.model = model
        self.patches: dict[str, list] = {}
        self.dynamic_loras: dict[str, list[dict]] = {}
        self.weight_wrapper_patches: dict[str, list] = {}
        self.backup: dict[str, nn.Parameter] = {}
        self.patches_uuid = uuid.uuid4()
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None  # type: ignore[assignment]

    def has_online_lora(self) -> bool:
        return bool(self.weight_wrapper_patches or self.dynamic_loras)

    def clone(self) -> ModelPatcher:
        new = type(self)(self.model)
        for kind in ("patches", "dynamic_loras", "weight_wrapper_patches"):
            setattr(new, kind, {key: list(found) for key, found in getattr(self, kind).items()})
        new.backup, new.patches_uuid = self.backup, self.patches_uuid
        return new

    def add_patches(
        self,
        patches: dict[str, Any],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
        *,
        filename: str | None = None,
        online_mode: bool | None = None,
    ) -> list[str]:
        there = dict(self.model.named_parameters())
        for key in patches.keys() & there.keys():
            layer, v = self.model.get_submodule(key.removesuffix(".weight")), patches[key]
            entry = None
            if not online_mode:
                self.patches.setdefault(key, []).append((strength_patch, v, strength_model, None, None))
            elif getattr(layer, "supports_dynamic_lora", False):
                entry = dynamic_entry(str(filename), strength_patch, v, there[key].shape)
            if entry is not None:
                self.dynamic_loras.setdefault(key, []).append(entry)
            elif online_mode:
                wrapper = OnlineLoRAPatch(str(filename), key, [strength_patch, v, strength_model, None, None])
                self.weight_wrapper_patches.setdefault(key, []).append(wrapper)
        self.patches_uuid = uuid.uuid4()
        return list(patches.keys() & there.keys())

    def load(self) -> None:
        if self.model.current_weight_patches_uuid not in (None, self.patches_uuid):
            self.unpatch_model()
        for name, layer in self.model.named_modules():
            key = f"{name}.weight"
            if isinstance(layer, ForgeWeights):
                layer.weight_function = list(self.weight_wrapper_patches.get(key, ()))
            wipe(layer)
            if key in self.dynamic_loras:
                build(layer, self.dynamic_loras[key])
            if key in self.patches and key not in self.backup:
                self.backup[key] = layer.weight  # type: ignore[assignment]
                merged = merge(self.patches[key], self.backup[key].clone(), key)
                layer.weight = nn.Parameter(merged, requires_grad=False)
        self.model.current_weight_patches_uuid = self.patches_uuid  # type: ignore[assignment]

    def unpatch_model(self) -> None:
        for key, weight in self.backup.items():
            self.model.get_submodule(key.removesuffix(".weight")).weight = weight
        self.backup.clear()
        for layer in self.model.modules():
            wipe(layer)
        self.model.current_weight_patches_uuid = None  # type: ignore[assignment]


def load_lora_for_models(
    model: ModelPatcher,
    clip: Clip,
    lora: dict[str, Tensor],
    strength_model: float,
    strength_clip: float,
    filename: str = "default",
    online_mode: bool = False,
) -> tuple[ModelPatcher, Clip]:
    """A file of which more than half does not fit is left alone as a whole."""
    layers, found = networks.by_layer(lora), []
    for owner, root in ((model, model.model), (clip, clip.cond_stage_model)):
        keys = {name.replace(".", "_"): f"{name}.weight" for name, _ in root.named_modules()}
        found.append((owner, {keys[name]: adapter(tensors) for name, tensors in layers.items() if name in keys}))
    if sum(len(patches) for _, patches in found) * 2 < len(layers):
        return model, clip
    new: list[Any] = []
    for (owner, patches), strength in zip(found, (strength_model, strength_clip)):
        if patches:
            owner = owner.clone()
            owner.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=online_mode)
        new.append(owner)
    return new[0], new[1]


def adapter(tensors: dict[str, Tensor]) -> LoRAAdapter:
    return LoRAAdapter(tensors["lora_up.weight"], tensors["lora_down.weight"], float(tensors["alpha"]))


class LoRAControl:
    """Neo's own script: a weight that changes from step to step.  ``mapping``: a file's path to its weights, by step."""

    def __init__(self, host: FakeNeo, mapping: dict[str, list[float]]):
        self.host, self.mapping = host, mapping

    def adjust_lora(self, params: Any) -> None:
        unet = self.host.sd_model.forge_objects.unet
        for path, weights in self.mapping.items():
            weight = weights[min(params.denoiser.step, len(weights) - 1)]
            for patch in sum(unet.weight_wrapper_patches.values(), []):
                if patch.name == path:
                    patch.patch[0][0] = weight
            for entry in sum(unet.dynamic_loras.values(), []):
                if entry["name"] == path:
                    entry["strength"] = weight


class FakeNeo(FakeForge):
    name = "Forge Neo"
    patcher = ModelPatcher
    online = True

    def load(self, checkpoint: Checkpoint) -> Any:
        model = super().load(checkpoint)
        mixed_precision(model.model.diffusion_model)
        for layer in model.forge_objects.clip.cond_stage_model.modules():
            if isinstance(layer, nn.Linear):
                layer.__class__ = PlainLinear
        return model

    def own_modules(self, lora_dir: Path) -> dict[str, types.ModuleType]:
        modules = super().own_modules(lora_dir)
        modules["networks"].load_lora_for_models = load_lora_for_models  # type: ignore[attr-defined]
        modules["backend.patcher.base"].ModelPatcher = ModelPatcher  # type: ignore[attr-defined]
        modules["backend.args"].dynamic_args = types.SimpleNamespace(online_lora=self.online)  # type: ignore[attr-defined]
        return modules

    def load_model_gpu(self, patcher: Any) -> None:
        if not any(p is patcher for p in self.on_gpu):
            self.on_gpu[:] = [p for p in self.on_gpu if p.model is not patcher.model] + [patcher]
            patcher.load()
