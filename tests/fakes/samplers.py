"""A1111's clock, small: samplers that call a denoiser, which counts its calls and asks the callbacks before each."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TIMESTEPS = 1000
ALPHAS = torch.linspace(0.999, 0.01, TIMESTEPS)
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()


class SigmaWrap:
    """k-diffusion's wrapper: it knows the sigma of every training timestep."""

    sigmas = SIGMAS

    def sigma_to_t(self, sigma: Tensor, quantize: bool = True) -> Tensor:
        distance = (sigma.log() - self.sigmas.log()).abs()
        nearest = distance.argmin()
        if quantize:
            return nearest
        low = nearest.clamp(max=TIMESTEPS - 2)
        low = low - 1 if sigma < self.sigmas[low] and low > 0 else low
        share = (sigma.log() - self.sigmas[low].log()) / (self.sigmas[low + 1].log() - self.sigmas[low].log())
        return low + share.clamp(0, 1)


class TimestepWrap:
    """What DDIM and UniPC have instead."""


class Denoiser:
    """CFGDenoiser: ``step`` counts calls, ``total_steps`` is their planned number."""

    def __init__(self, sampler: Sampler, host: Any, wrap: Any):
        self.sampler, self.host, self.inner_model = sampler, host, wrap
        self.p: Any = None
        self.init_latent: Tensor | None = None
        self.steps: int | None = None
        self.total_steps: int | None = None
        self.step = 0
        if isinstance(wrap, TimestepWrap):
            self.alphas = ALPHAS

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        host = self.host
        if host.shared.state.interrupted:
            raise host.sd_samplers_common.InterruptedException
        host.apply_refiner(self)
        if isinstance(self.inner_model, TimestepWrap) and not host.sigma_is_a_timestep:
            sigma = SIGMAS[sigma]
        params = types.SimpleNamespace(x=x, sigma=sigma.expand(2), sampling_step=max(self.step - 1, 0), denoiser=self)
        host.script_callbacks.cfg_denoiser_callback(params)
        out = host.unet(x, self.p.c)
        host.called(self)
        self.step += 1
        return out


class Sampler:
    def __init__(self, name: str, host: Any):
        self.func, wrap, self.second_order = SAMPLERS[name]
        self.host = host
        self.model_wrap_cfg = Denoiser(self, host, wrap())
        self.last_latent: Tensor | None = None

    def launch_sampling(self, steps: int, func: Callable[[], Tensor]) -> Tensor | None:
        self.model_wrap_cfg.steps = steps
        self.model_wrap_cfg.total_steps = 2 * steps if self.second_order else steps
        try:
            return func()
        except self.host.sd_samplers_common.InterruptedException:
            return self.last_latent

    def initialise(self, p: Any, x: Tensor) -> None:
        self.model_wrap_cfg.p, self.model_wrap_cfg.step = p, 0
        self.last_latent = x

    def arguments(self, steps: int, skipped: int = 0) -> dict[str, Any]:
        """What the signature of the sampler's function asks for."""
        places = torch.linspace(TIMESTEPS - 1, 0, steps + skipped).round().long()[skipped:]
        known = {
            "sigmas": torch.cat([SIGMAS[places], torch.zeros(1)]),
            "timesteps": places,
            "n": steps,
            "sigma_min": SIGMAS[0],
            "sigma_max": SIGMAS[places[0]],
        }
        return {name: known[name] for name in inspect.signature(self.func).parameters if name in known}

    def sample(self, p: Any, x: Tensor, cond: Tensor) -> Tensor | None:
        self.host.sampling_prepare()
        self.initialise(p, x)
        given = self.arguments(p.steps)
        return self.launch_sampling(p.steps, lambda: self.func(self.model_wrap_cfg, x, cond, **given))

    def sample_img2img(self, p: Any, x: Tensor, noise: Tensor, cond: Tensor, steps: int | None = None) -> Tensor | None:
        """``steps`` model calls as asked for (hires), or the share of p.steps that the strength leaves (img2img)."""
        self.host.sampling_prepare()
        strength = min(p.denoising_strength, 0.999)
        planned = steps or int(strength * p.steps) + 1
        whole = int(planned / strength) if steps else p.steps
        self.initialise(p, x)
        self.model_wrap_cfg.init_latent = x
        given = self.arguments(planned, max(whole - planned, 0))
        return self.launch_sampling(planned, lambda: self.func(self.model_wrap_cfg, x + noise, cond, **given))


def euler(model: Denoiser, x: Tensor, cond: Tensor, sigmas: Tensor) -> Tensor:
    for sigma in sigmas[:-1]:
        x = x - 0.1 * model(x, sigma, cond)
        model.sampler.last_latent = x
    return x


def heun(model: Denoiser, x: Tensor, cond: Tensor, sigmas: Tensor) -> Tensor:
    """Two calls a step, one in the last."""
    for sigma, after in zip(sigmas[:-1], sigmas[1:]):
        slope = model(x, sigma, cond)
        if after > 0:
            slope = (slope + model(x - 0.1 * slope, after, cond)) / 2
        x = x - 0.1 * slope
    return x


def ddim(model: Denoiser, x: Tensor, cond: Tensor, timesteps: Tensor) -> Tensor:
    for timestep in timesteps:
        x = x - 0.1 * model(x, timestep, cond)
    return x


def unipc(model: Denoiser, x: Tensor, cond: Tensor, timesteps: Tensor) -> Tensor:
    """One call more than announced."""
    return ddim(model, x, cond, torch.cat([timesteps, timesteps[-1:]]))


def adaptive(model: Denoiser, x: Tensor, cond: Tensor, sigma_min: Tensor, sigma_max: Tensor) -> Tensor:
    """As many calls as it likes."""
    for sigma in torch.exp(torch.linspace(float(sigma_max.log()), float(sigma_min.log()), 17)):
        x = x - 0.05 * model(x, sigma, cond)
    return x


SAMPLERS: dict[str, tuple[Callable[..., Tensor], type, bool]] = {
    "Euler": (euler, SigmaWrap, False),
    "Heun": (heun, SigmaWrap, True),
    "DDIM": (ddim, TimestepWrap, False),
    "UniPC": (unipc, TimestepWrap, False),
    "DPM adaptive": (adaptive, SigmaWrap, False),
}
