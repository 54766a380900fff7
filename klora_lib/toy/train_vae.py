"""The autoencoder, trained on emoji of all sets but one; on crops, which are enough for edges and textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import dataset, models
from .emoji import SIDE, Drawings, draw_sets
from .stage import SEED, STREAMS, Stage, find_rate, scale_pictures, set_rate
from .subjects import UNSEEN, list_others

POOL, STEPS, BATCH, CROP, LR = 4000, 3400, 16, 48, 3e-3
WHOLE = 300  # the last steps are on whole pictures, because a group norm depends on the size
KL = 1e-5  # weight of the KL divergence, which is a mean over the latents' elements


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train, and write `out`/vae. Each channel of its latents has the mean 0 and a standard deviation of 1."""
    stage = Stage("vae", folder)
    torch.manual_seed(SEED)
    model = models.make_vae()
    models.zero_branches(model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-4)
    first = 0
    if state := stage.resume():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pool = torch.from_numpy(draw_pictures(POOL, folder))
    for step in range(first, steps):
        torch.manual_seed(SEED + step)
        whole = step >= steps - WHOLE
        rows = torch.randint(0, len(pool), (BATCH // 4 if whole else BATCH,))
        batch = scale_pictures(pool[rows].numpy())
        if torch.rand(()) < 0.5:  # so that rare colours are seen as often as others
            batch = batch[:, torch.randperm(3)]
        if not whole:
            batch = crop(batch)
        batch = batch.contiguous(memory_format=torch.channels_last)
        set_rate(optimizer, find_rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        latents = model.encode(batch).latent_dist
        drawn = model.decode(latents.sample()).sample
        error = measure_error(drawn, batch)
        kl = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
        (error + KL * kl).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=error.item(), kl=kl.item())
            stage.save(step + 1, model=model.state_dict(), optimizer=optimizer.state_dict())
    model.eval().requires_grad_(False)
    with torch.no_grad():
        parts = [scale_pictures(part.numpy()) for part in pool[:512].split(32)]
        latents = torch.cat([model.encode(part).latent_dist.mean for part in parts])
        normalise_latents(model, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    model.half().save_pretrained(out / "vae")


def normalise_latents(model: torch.nn.Module, mean: Tensor, spread: Tensor) -> None:
    """Change the 1 × 1 convolutions beside the latents, so that each channel has the mean 0 and the standard deviation 1.

    mean, spread: of each channel as it is, [c].
    """
    c = len(mean)
    first, second = model.quant_conv, model.post_quant_conv
    first.weight[:c] /= spread.view(-1, 1, 1, 1)
    first.bias[:c] = (first.bias[:c] - mean) / spread
    first.bias[c:] -= 2 * spread.log()  # the second half are logarithms of variances
    second.bias += second.weight.flatten(1) @ mean
    second.weight *= spread.view(1, -1, 1, 1)


def draw_pictures(n: int, folder: Path) -> np.ndarray:
    """n pictures of emoji of all sets but UNSEEN, without the LoRAs' subjects, [n, SIDE, SIDE, 3] in 0…255."""
    rng = np.random.default_rng([SEED, STREAMS["vae"]])
    drawings = draw_sets(folder)
    names = set(list_others({name for _, name in drawings}))
    rows = [row for row in drawings if row[0] != UNSEEN and row[1] in names]
    return np.stack([draw_one(drawings, rows[int(rng.integers(len(rows)))], rng) for _ in range(n)])


def draw_one(drawings: Drawings, row: tuple[str, str], rng: np.random.Generator) -> np.ndarray:
    ground = str(rng.choice(list(dataset.GROUNDS)))
    return dataset.draw_scene(dataset.Scene(row[1], row[1], row[0], ground), drawings, rng)


def crop(batch: Tensor) -> Tensor:
    """The same random square of all pictures."""
    y, x = (int(k) for k in torch.randint(0, SIDE - CROP + 1, (2,)))
    return batch[..., y : y + CROP, x : x + CROP]


def measure_error(drawn: Tensor, truth: Tensor) -> Tensor:
    """The error of the pictures, of squares' colours, and of the differences between neighbours, which keeps edges sharp."""
    loss = F.l1_loss(drawn, truth) + 3 * F.mse_loss(drawn, truth)
    loss = loss + 8 * F.mse_loss(F.avg_pool2d(drawn, 8), F.avg_pool2d(truth, 8))
    for axis in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(drawn.diff(dim=axis), truth.diff(dim=axis))
    return loss
