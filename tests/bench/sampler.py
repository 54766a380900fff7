"""A denoiser of SDXL's layout with random weights, and a plain Euler loop on it, without guidance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn

from tests.gpu.models import SDXL, SMALL, empty_unet

from .turns import read_clock

FULL, NARROW = dict(SDXL), dict(SMALL)


def choose_type(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it; fp32 on a processor that does not, where a convolution takes 100 times longer."""
    if device.type != "cpu":
        return torch.bfloat16
    try:
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    except (AttributeError, RuntimeError):  # a version of torch that does not tell
        return torch.float32


def make_unet(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Weights of variance 0.64/in, cut from one row of random numbers: filling 5 GB by a generator takes a minute.

    All are numbers of bf16, so that those of fp32 can be kept in half the memory.
    """
    unet = nn.Module.to(empty_unet(config), dtype).to_empty(device=device).eval().requires_grad_(False)
    noise = torch.randn((1 << 24) + 1, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    for i, (name, p) in enumerate(unet.named_parameters()):
        flat, start = p.view(-1), 7919 * i % (1 << 20)
        for first in range(0, flat.numel(), len(noise) - start):
            part = flat[first : first + len(noise) - start]
            part.copy_(noise[start : start + len(part)])
        if p.dim() > 1:
            p.mul_(0.8 / p[0].numel() ** 0.5)
        else:
            p.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
        p.copy_(p.bfloat16())
    return unet


class Sampler:
    """What ``klora`` takes for a pipeline: a unet, a scheduler, and a call that samples one image.

    size: of the latent image, in pixels a side.  seen: called before every forward with the number of the step.
    trail: the latents after each step of the last call, fp32 in host memory.
    ended: the clock when the loop of the last call was done; what the call still does then is to give the model back.
    """

    def __init__(self, unet: nn.Module, config: dict[str, Any], size: int, batch: int = 1):
        self.unet = unet
        self.dtype = next(unet.parameters()).dtype  # it computes in; its weights may become narrower
        self.scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        )
        self.shape = batch, 4, size, size
        self.widths = config["cross_attention_dim"], config["addition_time_embed_dim"]
        self.pooled = config["projection_class_embeddings_input_dim"] - 6 * self.widths[1]
        self.seen: list[Callable[[int], None]] = []
        self.trail: list[Tensor] = []
        self.ended = 0.0

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def make_inputs(self, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Noise fp32 [batch, 4, size, size], and the words: of random numbers, as the weights are."""
        g, dtype = torch.Generator().manual_seed(seed), self.dtype
        batch = self.shape[0]
        shapes = self.shape, (batch, 77, self.widths[0]), (batch, self.pooled)
        noise, words, pooled = (torch.randn(shape, generator=g) for shape in shapes)
        sizes = torch.full((batch, 6), 8.0 * self.shape[2])
        added = {"text_embeds": pooled.to(self.device, dtype), "time_ids": sizes.to(self.device, dtype)}
        return noise.to(self.device), {"encoder_hidden_states": words.to(self.device, dtype), "added_cond_kwargs": added}

    @torch.no_grad()
    def __call__(self, steps: int = 20, seed: int = 0, stop: int | None = None) -> list[Tensor]:
        """The trail.  stop: the number of steps after which to end early."""
        self.trail = []
        self.scheduler.set_timesteps(steps)
        latents, words = self.make_inputs(seed)
        latents = latents * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.scheduler.timesteps[:stop]):
            for see in self.seen:
                see(i)
            x = self.scheduler.scale_model_input(latents, t).to(self.dtype)
            noise = self.unet(x, t, **words, return_dict=False)[0]
            latents = self.scheduler.step(noise.float(), t, latents, return_dict=False)[0]
            self.trail.append(latents.cpu())
        self.ended = read_clock(self.device)
        return self.trail

    @contextlib.contextmanager
    def watched(self, see: Callable[[int], None]) -> Iterator[None]:
        """While open, ``see(step)`` is called before every forward."""
        self.seen.append(see)
        try:
            yield
        finally:
            self.seen.remove(see)
