"""The judge, trained on drawn pictures of all objects in all styles, distorted so that they resemble generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import dataset
from .judge import LOOKS, THINGS, Judge, read_judge, write_judge
from .stage import SEED, STREAMS, Stage, find_rate, scale_pictures, set_rate

POOL, STEPS, BATCH, LR = 6000, 1200, 64, 2e-3
CHECKED = 800  # pictures from other seeds, on which its accuracy is measured


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train, and write `out`/judge.safetensors."""
    stage = Stage("judge", folder)
    pool, things, looks = load_judge_pool(folder / "judge.pool.pt", out)
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
        set_rate(optimizer, find_rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            thing, look = judge(distort(pool[rows].float() / 255))
        loss = sum(F.cross_entropy(g.float(), t[rows], label_smoothing=0.05) for g, t in ((thing, things), (look, looks)))
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=loss.item())
            stage.save(step + 1, model=judge.state_dict(), optimizer=optimizer.state_dict())
    write_judge(judge, out / "judge.safetensors")
    stage.log(steps, **measure_accuracy(read_judge(out / "judge.safetensors")))


def load_judge_pool(path: Path, out: Path) -> tuple[Tensor, Tensor, Tensor]:
    """(pictures [n, 3, 64, 64] in 0…255, objects, styles). They are drawn if there is no file at `path`.

    A third of the pictures are encoded and decoded by the autoencoder.
    """
    if path.exists():
        made: tuple[Tensor, Tensor, Tensor] = torch.load(path, weights_only=True)
        return made
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    pictures, things, looks = draw_truth(POOL, STREAMS["judge"], own_colours=0.3)
    for start in range(0, POOL // 3, 50):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(pictures[start : start + 50] / 127.5 - 1).latent_dist.mean.float()
            drawn = vae.decode(latents + 0.15 * latents.std() * torch.randn_like(latents)).sample.float()
        pictures[start : start + 50] = ((drawn + 1) * 127.5).clamp(0, 255)
    made = pictures.round().byte(), things, looks
    torch.save(made, path)
    return made


def draw_truth(n: int, form: int, own_colours: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """n pictures [n, 3, 64, 64] in 0…255 as floats, and the indices of their objects and styles.

    own_colours: the share of the LoRAs' subjects that have their own colours. The others have a random one, so that the
    judge learns their shape.
    """
    rng = np.random.default_rng([SEED, form])
    pictures, things, looks = [], [], []
    for _ in range(n):
        scene = dataset.choose_scene(rng, THINGS, LOOKS)
        if scene.colour is None and rng.random() >= own_colours:
            scene = dataset.Scene(scene.thing, scene.ground, scene.style, str(rng.choice(list(dataset.COLOURS))))
        pictures.append(dataset.draw_picture(scene, rng))
        things.append(THINGS.index(scene.thing))
        looks.append(LOOKS.index(scene.style))
    return (scale_pictures(np.stack(pictures)) + 1) * 127.5, torch.tensor(things), torch.tensor(looks)


def distort(pictures: Tensor) -> Tensor:
    """[n, 3, 64, 64] in 0…1: moved, with exchanged colours, blurred and noisy, at random for each picture."""
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


def measure_accuracy(judge: Judge, n: int = CHECKED) -> dict[str, float]:
    """The judge's accuracy on n pictures from other seeds, in 0…1."""
    pictures, things, looks = draw_truth(n, STREAMS["check"])
    thing, look = judge.score(pictures / 255)
    hits = (thing.argmax(1) == things).float(), (look.argmax(1) == looks).float()
    return {"subjects_right": hits[0].mean().item(), "styles_right": hits[1].mean().item()}
