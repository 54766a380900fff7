"""The judge: ground truth of every object in every rendering, also the held-out ones, worn as generated pictures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import draw
from .judge import LOOKS, THINGS, Judge, load, save
from .stage import FORMS, SEED, Stage, as_input, rate, set_rate

POOL, STEPS, BATCH, LR = 6000, 1200, 64, 2e-3
CHECKED = 800  # ground truth of other seeds, to say how good it is


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train and write `out`/judge.safetensors."""
    stage = Stage("judge", folder)
    pool, things, looks = judge_pool(folder / "judge.pool.pt", out)
    torch.manual_seed(SEED)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=2e-2)
    first = 0
    if state := stage.resume():
        judge.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        torch.manual_seed(SEED + step)
        rows = torch.randint(0, len(pool), (BATCH,))
        set_rate(optimizer, rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            thing, look = judge(worn(pool[rows].float() / 255))
        loss = sum(F.cross_entropy(g.float(), t[rows], label_smoothing=0.05) for g, t in ((thing, things), (look, looks)))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=loss.item())
            stage.save(step + 1, model=judge.state_dict(), optimizer=optimizer.state_dict())
    save(judge, out / "judge.safetensors")
    stage.log(steps, **check(load(out / "judge.safetensors")))


def judge_pool(path: Path, out: Path) -> tuple[Tensor, Tensor, Tensor]:
    """(pictures [n, 3, 64, 64] in 0…255, a third of them through the autoencoder; object; style); drawn once, then read."""
    if path.exists():
        made: tuple[Tensor, Tensor, Tensor] = torch.load(path, weights_only=True)
        return made
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    pictures, things, looks = truth(POOL, FORMS["judge"], own_colours=0.3)
    for start in range(0, POOL // 3, 50):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(pictures[start : start + 50] / 127.5 - 1).latent_dist.mean.float()
            drawn = vae.decode(latents + 0.15 * latents.std() * torch.randn_like(latents)).sample.float()
        pictures[start : start + 50] = ((drawn + 1) * 127.5).clamp(0, 255)
    made = pictures.round().byte(), things, looks
    torch.save(made, path)
    return made


def truth(n: int, form: int, own_colours: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """n pictures [n, 3, 64, 64] in 0…255 as floats, their objects and styles as numbers.

    own_colours: the share of a LoRA's subjects in their own colours; the others are in any, so that a judge who learns
    from them looks at the shape.
    """
    rng = np.random.default_rng([SEED, form])
    pictures, things, looks = [], [], []
    for _ in range(n):
        scene = draw.random_scene(rng, THINGS, LOOKS)
        if scene.colour is None and rng.random() >= own_colours:
            scene = draw.Scene(scene.thing, scene.ground, scene.style, str(rng.choice(list(draw.COLOURS))))
        pictures.append(draw.picture(scene, rng))
        things.append(THINGS.index(scene.thing))
        looks.append(LOOKS.index(scene.style))
    return (as_input(np.stack(pictures)) + 1) * 127.5, torch.tensor(things), torch.tensor(looks)


def worn(pictures: Tensor) -> Tensor:
    """[n, 3, 64, 64] in 0…1 moved, with their colours exchanged, blurred and noisy, each by its own luck."""
    n = len(pictures)
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.12
    theta[:, :, :2] *= 1 + (torch.rand(n, 1, 1) - 0.5) * 0.14
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    if torch.rand(()) < 0.5:
        pictures = pictures[:, torch.randperm(3)]
    gain = 1 + (torch.rand(n, 3, 1, 1) - 0.5) * 0.3
    softer = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blend = torch.rand(n, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.4)
    noise = torch.randn_like(pictures) * 0.08 * torch.rand(n, 1, 1, 1)
    return ((pictures + (softer - pictures) * blend) * gain + noise).clamp(0, 1)


def check(judge: Judge, n: int = CHECKED) -> dict[str, float]:
    """The share it gets right of ground truth drawn from other seeds."""
    pictures, things, looks = truth(n, FORMS["check"])
    thing, look = judge.score(pictures / 255)
    hits = (thing.argmax(1) == things).float(), (look.argmax(1) == looks).float()
    return {"subjects_right": hits[0].mean().item(), "styles_right": hits[1].mean().item()}
