"""The judge, trained on emoji that are no LoRA's subject, in the base model's sets and the LoRAs'.

What it is asked for, a LoRA's subject in a LoRA's style, it has not seen.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .dataset import GROUNDS
from .emoji import Drawings, draw_sets
from .judge import LOOKS, SIDE, SOURCES, THINGS, Judge, read_judge, write_judge
from .stage import SEED, STREAMS, Stage, find_rate, set_rate
from .subjects import BASE, BASE_STYLES, STYLES, SUBJECTS, list_others

STEPS, LR = 2500, 2e-3
BATCH = 64
SHARP = 12.0  # cosines × this are the logits while it learns
SOFT = 3072  # pictures that went through the toy's autoencoder, which makes them softer, as it makes generated ones
LOOK_OF = dict.fromkeys(BASE_STYLES, "plain") | {its: style for style, its in STYLES.items()}

Rows = list[tuple[str, str]]


class Pictures:
    """Drawings as tensors.  small: [n, 4, SIDE, SIDE] in 0…1, colours multiplied by the opacity.  rows: (set, name)."""

    def __init__(self, drawings: Drawings):
        self.rows: Rows = list(drawings)
        self.at = {row: number for number, row in enumerate(self.rows)}
        whole = torch.from_numpy(np.stack(list(drawings.values()))).permute(0, 3, 1, 2)
        parts = [part.float() / 255 for part in whole.split(256)]
        parts = [torch.cat([part[:, :3] * part[:, 3:], part[:, 3:]], 1) for part in parts]
        self.small = torch.cat([F.interpolate(part, (SIDE, SIDE), mode="area") for part in parts])

    def place(self, numbers: Tensor, grounds: Tensor | None = None, moved: float = 1.0) -> Tensor:
        """The drawings on plain backgrounds, [n, 3, SIDE, SIDE].  grounds: [n, 3]; None: of the toy's, at random."""
        drawn, n = self.small[numbers], len(numbers)
        if grounds is None:
            known = torch.tensor(list(GROUNDS.values()), dtype=torch.float32) / 255
            grounds = known[torch.randint(0, len(known), (n,))]
        theta = torch.eye(2, 3).repeat(n, 1, 1)
        theta[:, :, :2] *= 1.09 + 0.12 * moved * (torch.rand(n, 1, 1) * 2 - 1)  # larger: the drawing becomes smaller
        theta[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * 0.12 * moved
        grid = F.affine_grid(theta, list(drawn.shape), align_corners=False)
        drawn = F.grid_sample(drawn, grid, padding_mode="zeros", align_corners=False)
        return drawn[:, :3] + (1 - drawn[:, 3:]) * grounds.view(n, 3, 1, 1)


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Train, and write `out`/judge.safetensors.  Needs `out`/vae."""
    stage = Stage("judge", folder)
    pictures = Pictures(draw_sets(folder))
    names = list_others({name for _, name in pictures.rows})
    learned = Learned(pictures, names, out)
    torch.manual_seed(SEED)
    judge = Judge()
    proxies = torch.nn.Parameter(torch.randn(len(names), judge.WIDTH))  # the descriptions of all names
    styles = torch.nn.Parameter(torch.randn(len(SOURCES), judge.WIDTH))
    optimizer = torch.optim.AdamW([*judge.parameters(), proxies, styles], lr=LR, weight_decay=2e-2)
    first = 0
    if state := stage.resume():
        judge.load_state_dict(state["model"])
        proxies.data.copy_(state["proxies"])
        styles.data.copy_(state["styles"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        torch.manual_seed(SEED + step)
        set_rate(optimizer, find_rate(step, steps, LR))
        optimizer.zero_grad(set_to_none=True)
        seen, rows = learned.draw(BATCH)
        cosines = judge.thing(distort(filter_some(seen))) @ F.normalize(proxies, dim=1).T
        thing = F.cross_entropy(SHARP * cosines, learned.things[rows], label_smoothing=0.05)
        cosines = judge.look(distort(seen)) @ F.normalize(styles, dim=1).T
        look = F.cross_entropy(SHARP * cosines, learned.sources[rows], label_smoothing=0.05)
        (thing + look).backward()
        optimizer.step()
        if step % 100 == 99 or step + 1 == steps:
            stage.log(step + 1, loss=(thing + look).item(), thing=thing.item(), look=look.item())
            kept = {"proxies": proxies.data, "styles": styles.data, "optimizer": optimizer.state_dict()}
            stage.save(step + 1, model=judge.state_dict(), **kept)
    judge.eval()
    judge.looks.copy_(F.normalize(styles.data, dim=1))
    describe_things(judge, pictures)
    write_judge(judge, out / "judge.safetensors")
    stage.log(steps, **measure_accuracy(read_judge(out / "judge.safetensors"), pictures))


class Learned:
    """The pictures that the judge learns from, each set as often as another.

    numbers, things, sources: of each row, its number among `pictures`, its name's among `names`, its set's among SOURCES.
    """

    def __init__(self, pictures: Pictures, names: list[str], out: Path):
        self.pictures = pictures
        rows = [row for row in pictures.rows if row[0] in SOURCES and row[1] in set(names)]
        self.numbers = torch.tensor([pictures.at[row] for row in rows])
        self.things = torch.tensor([names.index(name) for _, name in rows])
        self.sources = torch.tensor([SOURCES.index(source) for source, _ in rows])
        self.chance = 1 / torch.bincount(self.sources, minlength=len(SOURCES))[self.sources].double()
        torch.manual_seed(SEED + STREAMS["judge"])
        self.soft_rows = torch.multinomial(self.chance, min(SOFT, len(rows)), replacement=True)
        self.soft = soften(pictures.place(self.numbers[self.soft_rows]), out)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """n pictures, half of them softened, and their rows."""
        rows = torch.multinomial(self.chance, n - n // 2, replacement=True)
        chosen = torch.randint(0, len(self.soft), (n // 2,))
        seen = torch.cat([self.pictures.place(self.numbers[rows]), self.soft[chosen]])
        return seen, torch.cat([rows, self.soft_rows[chosen]])


@torch.no_grad()
def soften(pictures: Tensor, out: Path) -> Tensor:
    """[n, 3, SIDE, SIDE] through the toy's autoencoder, which takes them twice as large."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    found = []
    for part in pictures.split(32):
        large = F.interpolate(part, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1
        again = vae.decode(vae.encode(large).latent_dist.mean).sample
        found.append(F.interpolate((again + 1) / 2, (SIDE, SIDE), mode="area").clamp(0, 1))
    return torch.cat(found)


def choose_filter() -> tuple[int, Tensor]:
    """(kind, numbers) of a random filter; a third of the time none."""
    kind = int(torch.randint(0, 7, ())) if torch.rand(()) < 0.67 else 0
    return kind, torch.rand(8)


def filter_some(pictures: Tensor) -> Tensor:
    """Half of the pictures with one random filter, so that the subject is known by its shape."""
    half = len(pictures) // 2
    return torch.cat([apply_filter(pictures[:half], *choose_filter()), pictures[half:]])


def apply_filter(pictures: Tensor, kind: int, numbers: Tensor) -> Tensor:
    """A change of rendering: 0 none, 1 fewer colours, 2 one ink, 3 outlines, 4 grain, 5 soft, 6 hues and contrast."""
    grey = pictures.mean(1, keepdim=True)
    ink = numbers[:3].view(1, 3, 1, 1) * 0.6
    if kind == 1:
        levels = 2 + int(numbers[0] * 3)
        return (pictures * levels).round() / levels
    if kind == 2:
        ground = pictures[:, :, :1, :1]
        dark = ((grey - ground.mean(1, keepdim=True)).abs() > 0.08 + 0.2 * numbers[3]).float()
        return ground + (ink - ground) * dark
    if kind == 3:
        ground = pictures[:, :, :1, :1]
        edges = find_edges(pictures)
        edges = (edges * (2 + 4 * numbers[3])).clamp(0, 1)
        inside = pictures if numbers[4] < 0.5 else ground.expand_as(pictures)
        return inside + (ink - inside) * edges
    if kind == 4:
        return pictures + (0.05 + 0.15 * numbers[0]) * torch.randn(len(pictures), 1 if numbers[1] < 0.5 else 3, SIDE, SIDE)
    if kind == 5:
        y = torch.linspace(-1, 1, SIDE).view(1, 1, -1, 1)
        light = 0.35 * (numbers[0] - 0.5) * y + 0.35 * (numbers[1] - 0.5) * y.transpose(2, 3)
        soft = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, 1)
        return soft + (pictures - soft) * numbers[2] * 1.5 + light
    if kind == 6:
        strength = 0.3 + 1.5 * numbers[0]
        order = pictures[:, torch.randperm(3, generator=torch.Generator().manual_seed(int(numbers[1] * 1e6)))]
        return (grey + (order - grey) * strength - 0.5) * (0.6 + 0.8 * numbers[2]) + 0.5
    return pictures


def find_edges(pictures: Tensor) -> Tensor:
    """How much neighbouring pixels differ, [n, 1, SIDE, SIDE]."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs().amax(1, keepdim=True)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs().amax(1, keepdim=True)
    return torch.maximum(across, down)


def distort(pictures: Tensor) -> Tensor:
    """Blurred and noisy, at random for each picture, as generated pictures are."""
    n = len(pictures)
    softer = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blend = torch.rand(n, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    noise = torch.randn_like(pictures) * 0.04 * torch.rand(n, 1, 1, 1)
    gain = 1 + (torch.rand(n, 3, 1, 1) - 0.5) * 0.12
    return ((pictures + (softer - pictures) * blend) * gain + noise).clamp(0, 1)


@torch.no_grad()
def describe_things(judge: Judge, pictures: Pictures, each: int = 12) -> None:
    """Fill the judge's candidates for the subject, each by its drawings; a LoRA's by that of its own set alone."""
    torch.manual_seed(SEED)
    for number, word in enumerate(THINGS):
        name, sources = BASE.get(word, word), [SUBJECTS[word]] if word in SUBJECTS else list(BASE_STYLES)
        rows = [pictures.at[source, name] for source in sources if (source, name) in pictures.at] * each
        judge.things[number] = F.normalize(judge.thing(pictures.place(torch.tensor(rows))).mean(0), dim=0)


@torch.no_grad()
def measure_accuracy(judge: Judge, pictures: Pictures, each: int = 8) -> dict[str, float]:
    """Shares in 0…1 that the judge names right, of drawings that it did not learn from.

    subjects: the LoRAs' subjects, among all of THINGS, in the sets that share the subject's drawing; elsewhere: in sets with
    another drawing of the same thing.  styles: of the LoRAs' subjects in all those sets, among LOOKS.
    """
    from .subjects import SAME_DRAWINGS

    torch.manual_seed(SEED + STREAMS["check"])
    own, other = [], []
    for word, source in SUBJECTS.items():
        for row in pictures.rows:
            if row[1] == word and row[0] != source:
                found = judge.score(pictures.place(torch.tensor([pictures.at[row]] * each)))[0].argmax(1)
                (own if row[0] in SAME_DRAWINGS[source] else other).append((found == THINGS.index(word)).float())
    facts = {"subjects": torch.cat(own).mean().item(), "subjects_elsewhere": torch.cat(other).mean().item()}
    for look in LOOKS:
        sources = [source for source, its in LOOK_OF.items() if its == look]
        rows = [pictures.at[row] for row in product(sources, SUBJECTS) if row in pictures.at] * each
        found = judge.score(pictures.place(torch.tensor(rows)))[1].argmax(1)
        facts[f"style_{look}"] = (found == LOOKS.index(look)).float().mean().item()
    return facts
