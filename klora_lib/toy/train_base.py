"""The base model: a text encoder and a UNet, trained together from scratch, without the LoRAs' subjects and styles."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import dataset, models
from .emoji import draw_sets
from .stage import SEED, STREAMS, Stage, find_rate, scale_pictures, set_rate
from .subjects import BASE, BASE_STYLES

VARIANTS, STEPS, BATCH, LR = 24, 8000, 16, 1e-3  # VARIANTS: pictures of each drawing
DROPPED = 0.1  # share of captions that are left out, for classifier-free guidance
MEMORY = 0.999  # decay of the exponential moving average of the weights


class Pool(NamedTuple):
    """Encoded pictures. latents: [n, 8, 16, 16], of mean 0 and standard deviation 1. tokens: [n, LENGTH]."""

    latents: Tensor
    tokens: Tensor


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train, and write unet, text_encoder, tokenizer and scheduler into `out`. The weights are averaged over the steps."""
    from transformers import CLIPTokenizer

    stage = Stage("base", folder)
    models.write_tokenizer(out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    pool = load_base_pool(folder / "base.pool.pt", out, tokenizer)
    torch.manual_seed(SEED)
    text, unet = models.make_text_encoder(len(tokenizer)), models.make_unet()
    models.zero_branches(unet).to(memory_format=torch.channels_last)
    both = torch.nn.ModuleDict({"text": text, "unet": unet})
    average = [p.detach().clone() for p in both.parameters()]
    decayed = {"params": list(unet.parameters()), "weight_decay": 1e-2}
    constant = {"params": list(text.parameters()), "weight_decay": 0.0}  # so words that no caption has do not change
    optimizer = torch.optim.AdamW([decayed, constant], lr=LR, betas=(0.9, 0.99), fused=True)
    first = 0
    if state := stage.resume():
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    empty = tokenise(tokenizer, [""])
    signal = read_alphas()
    losses: list[float] = []
    for step in range(first, steps):
        torch.manual_seed(SEED + step)
        rows = torch.randint(0, len(pool.latents), (BATCH,))
        tokens = torch.where(torch.rand(BATCH, 1) < DROPPED, empty, pool.tokens[rows])
        set_rate(optimizer, find_rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        loss = measure_loss(unet, text(tokens)[0], pool.latents[rows], signal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in both.parameters()], 1 - min(MEMORY, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=float(np.mean(losses)))
            losses.clear()
        if step % stage.every == stage.every - 1 or step + 1 == steps:
            stage.save(step + 1, model=both.state_dict(), optimizer=optimizer.state_dict(), average=average)
    with torch.no_grad():
        for parameter, value in zip(both.parameters(), average, strict=True):
            parameter.copy_(value)
    unet.half().save_pretrained(out / "unet")
    text.half().save_pretrained(out / "text_encoder")
    models.make_scheduler().save_pretrained(out / "scheduler")


def load_base_pool(path: Path, out: Path, tokenizer: object) -> Pool:
    """The base model's pictures, encoded. They are drawn if there is no file at `path`."""
    if path.exists():
        return Pool(*torch.load(path, weights_only=True))
    rng = np.random.default_rng([SEED, STREAMS["base"]])
    grounds = list(dataset.GROUNDS)
    scenes = [
        dataset.Scene(emoji, word, source, grounds[number % len(grounds)])
        for word, emoji in BASE.items()
        for source in BASE_STYLES
        for number in range(VARIANTS)
    ]
    made = make_pool(scenes, [scene.caption for scene in scenes], rng, out, path.parent, tokenizer)
    torch.save(tuple(made), path)
    return made


def make_pool(
    scenes: list[dataset.Scene],
    captions: list[str],
    rng: np.random.Generator,
    out: Path,
    folder: Path,
    tokenizer: object,
) -> Pool:
    """Draw the scenes with the drawings in `folder`, and encode them with the autoencoder in `out`/vae."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    drawings, latents = draw_sets(folder), []
    for start in range(0, len(scenes), 48):
        drawn = np.stack([dataset.draw_scene(scene, drawings, rng) for scene in scenes[start : start + 48]])
        with torch.no_grad():
            latents.append(vae.encode(scale_pictures(drawn)).latent_dist.mean)
    return Pool(torch.cat(latents), tokenise(tokenizer, captions))


def tokenise(tokenizer: object, captions: list[str]) -> Tensor:
    """Token ids of n captions, [n, LENGTH]."""
    ids: Tensor = tokenizer(captions, padding="max_length", max_length=models.LENGTH, return_tensors="pt").input_ids  # type: ignore[operator]
    return ids


def read_alphas() -> Tensor:
    """The signal's share of the variance at each timestep of the scheduler, [1000]."""
    share: Tensor = models.make_scheduler().alphas_cumprod
    return share


def measure_loss(unet: torch.nn.Module, context: Tensor, latents: Tensor, signal: Tensor) -> Tensor:
    """The mean squared error of the predicted velocity.

    context: [n, LENGTH, WIDTH]. latents: [n, 8, 16, 16]. Each picture's timestep is from another 1/n of the schedule.
    """
    n = len(latents)
    slots = (torch.arange(n) + torch.rand(n)) / n
    times = (slots * len(signal)).long().clamp(max=len(signal) - 1)
    share = signal[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = (share.sqrt() * latents + (1 - share).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    velocity = share.sqrt() * noise - (1 - share).sqrt() * latents
    # on a CPU the flash kernel's backward pass takes longer than everything else
    with sdpa_kernel(SDPBackend.MATH):
        guess = unet(noisy, times, context).sample
    return (guess - velocity).square().mean()
