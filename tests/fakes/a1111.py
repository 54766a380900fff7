"""A1111: one model whose layers merge lazily at their own forward, and into which other checkpoints are loaded in place."""

from __future__ import annotations

import types
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import networks
from .host import BASE, Checkpoint, FakeHost
from .unet import TextEncoder, UNet


class FakeA1111(FakeHost):
    name = "AUTOMATIC1111"
    reload = "reload_model_weights"
    part = "network_apply_weights"
    accordion_is_a_function = False
    sigma_is_a_timestep = True

    @property
    def unet(self) -> UNet:
        return self.sd_model.model.diffusion_model

    def load(self, checkpoint: Checkpoint) -> Any:
        model = torch.nn.Module()
        model.diffusion_model = UNet(seed=checkpoint.seed)
        return types.SimpleNamespace(
            model=model, cond_stage_model=TextEncoder(seed=checkpoint.seed), sd_checkpoint_info=checkpoint
        )

    def own_modules(self, lora_dir: Path) -> dict[str, types.ModuleType]:
        self.sd_models.reload_model_weights = self.reload_model_weights  # type: ignore[attr-defined]
        self.sd_models.unload_model_weights = self.unload_model_weights  # type: ignore[attr-defined]
        module = networks.make(self.shared, lora_dir)
        networks.name_layers(self.sd_model)
        module.patch()
        return {"networks": module}

    def undo(self) -> None:
        self.networks.undo()

    def generating(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def networks_active(self) -> None:
        """Layers merge at their next forward."""

    def sampling_prepare(self) -> None:
        """Nothing is pending: the model is in place."""

    def reload_model_weights(self, sd_model: Any = None, info: Checkpoint | None = None) -> Any:
        """Loads ``info`` (the base checkpoint, when None) into the very modules of the loaded model."""
        info = info or BASE
        if info != self.sd_model.sd_checkpoint_info:
            self.networks.loaded_networks.clear()
            fresh = self.load(info)
            for ours, theirs in (
                (self.sd_model.model, fresh.model),
                (self.sd_model.cond_stage_model, fresh.cond_stage_model),
            ):
                ours.load_state_dict(theirs.state_dict())
                for layer in ours.modules():
                    self.networks.network_reset_cached_weight(layer)
            self.sd_model.sd_checkpoint_info = info
        return self.sd_model

    def unload_model_weights(self, sd_model: Any = None) -> None:
        """To the CPU, where this host's model always is; no lock is asked for."""

    def begin_batch(self) -> None:
        self.sd_models.reload_model_weights()

    def swap_model(self, p: Any, info: Checkpoint) -> None:
        self.sd_models.reload_model_weights(info=info)
        p.setup_conds()

    def encode(self, prompt: str) -> Tensor:
        return self.sd_model.cond_stage_model(prompt)
