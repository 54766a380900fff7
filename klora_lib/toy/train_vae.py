"""The autoencoder, trained on pictures of all objects in all styles; on crops, which are enough for textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import dataset, models, shapes, styles
from .stage import SEED, STREAMS, Stage, find_rate, scale_pictures, set_rate

POOL, STEPS, BATCH, CROP, LR = 3000, 3600, 10, 32, 3e-3
WHOLE = 300  # the last steps are on whole pictures, because a group norm depends on the size
KL = 1e-4  # weight of the KL divergence, which is a mean over the latents' elements


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train, and write `out`/vae. Its scaling factor gives latents a standard deviation of 1."""
    stage = Stage("vae", folder)
    torch.manual_seed(SEED)
    model = models.make_vae()
    models.zero_branches(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-4)
    first = 0
    if state := stage.resume():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pool = scale_pictures(draw_pictures(POOL))
    for step in range(first, steps):
        torch.manual_seed(SEED + step)
        whole = step >= steps - WHOLE
        batch = pool[torch.randint(0, len(pool), (BATCH // 2 if whole else BATCH,))]
        if not whole:
            batch = crop(batch)
        set_rate(optimizer, find_rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = model.encode(batch).latent_dist
            drawn = model.decode(latents.sample()).sample.float()
        error = measure_error(drawn, batch)
        kl = 0.5 * (latents.mean.float() ** 2 + latents.var.float() - 1 - latents.logvar.float()).mean()
        (error + KL * kl).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=error.item(), kl=kl.item())
            stage.save(step + 1, model=model.state_dict(), optimizer=optimizer.state_dict())
    model.eval().requires_grad_(False)
    spread = model.encode(pool[:256]).latent_dist.mean.std()
    model.register_to_config(scaling_factor=1 / spread.item())
    model.half().save_pretrained(out / "vae")


def draw_pictures(n: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, STREAMS["vae"]])
    everything = list(shapes.OBJECTS), list(styles.STYLES)
    return np.stack([dataset.draw_picture(dataset.choose_scene(rng, *everything), rng) for _ in range(n)])


def crop(batch: Tensor) -> Tensor:
    """The same random square of all pictures, at a multiple of 4 pixels, which is the textures' period."""
    y, x = (4 * int(k) for k in torch.randint(0, (styles.SIDE - CROP) // 4 + 1, (2,)))
    return batch[..., y : y + CROP, x : x + CROP]


def measure_error(drawn: Tensor, truth: Tensor) -> Tensor:
    """The error of the pictures, and of the differences between neighbouring pixels, which keeps edges sharp."""
    loss = F.l1_loss(drawn, truth) + 3 * F.mse_loss(drawn, truth)
    for axis in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(drawn.diff(dim=axis), truth.diff(dim=axis))
    return loss
