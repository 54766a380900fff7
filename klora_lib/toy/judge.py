"""The judge: two small networks that turn a picture into a description of its subject, and of its style.

They learned from drawings of other subjects, in the base model's sets and the LoRAs'. A picture's subject, or style, is the
candidate whose description is nearest to the picture's.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import KLoraError, quote_first_line
from .subjects import BASE, BASE_STYLES, STYLES, SUBJECTS

THINGS = [*SUBJECTS, *BASE]  # the candidates for the subject: words
SOURCES = [*STYLES.values(), *BASE_STYLES]  # whose styles it learned to tell apart: first the LoRAs'
LOOKS = [*STYLES, "plain"]  # the candidates for the style; plain is that of any of the base model's sets
SIDE = 64  # pictures are halved before they are looked at
SHARP = 14.0  # cosines × this are the logits


class Judge(nn.Module):
    """thing, look: encoders.  things: [len(THINGS), WIDTH], looks: [len(SOURCES), WIDTH], the candidates' descriptions."""

    WIDTH = 96

    def __init__(self) -> None:
        super().__init__()
        self.thing = ShapeEncoder(self.WIDTH)
        self.look = TextureEncoder(self.WIDTH)
        self.register_buffer("things", torch.zeros(len(THINGS), self.WIDTH))
        self.register_buffer("looks", torch.zeros(len(SOURCES), self.WIDTH))
        self.things: Tensor
        self.looks: Tensor

    @torch.no_grad()
    def score(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, side, side] in 0…1 -> (probabilities over THINGS, over LOOKS)."""
        small = shrink(pictures)
        things, sets = self.thing(small) @ self.things.T, self.look(small) @ self.looks.T
        looks = torch.cat([sets[:, : len(STYLES)], sets[:, len(STYLES) :].amax(1, keepdim=True)], 1)
        return (SHARP * things).softmax(1), (SHARP * looks).softmax(1)


class ShapeEncoder(nn.Module):
    """[n, 3, 64, 64] in 0…1 -> descriptions of the subject [n, width], of length 1.

    Positions are kept, as they show the shape.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = make_convolutions(3, 32, 64, 96, 128)
        self.last = nn.Linear(128 * 4 * 4, width)

    def forward(self, pictures: Tensor) -> Tensor:
        return F.normalize(self.last(self.convolutions(pictures * 2 - 1).flatten(1)), dim=1)


class TextureEncoder(nn.Module):
    """[n, 3, 64, 64] in 0…1 -> descriptions of the style [n, width], of length 1, from means and spreads over positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([make_convolutions(3, 32), make_convolutions(32, 64), make_convolutions(64, 96)])
        self.last = nn.Sequential(nn.Linear(2 * (32 + 64 + 96), 192), nn.ReLU(), nn.Linear(192, width))

    def forward(self, pictures: Tensor) -> Tensor:
        found, features = [], pictures * 2 - 1
        for convolution in self.convolutions:
            features = convolution(features)
            found += [features.mean((2, 3)), features.std((2, 3))]
        return F.normalize(self.last(torch.cat(found, 1)), dim=1)


def make_convolutions(*widths: int) -> nn.Sequential:
    """One convolution from each number of channels to the next; each halves height and width."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def shrink(pictures: Tensor) -> Tensor:
    """[n, 3, side, side] in any range -> [n, 3, SIDE, SIDE] in 0…1."""
    return F.interpolate(pictures.float().clamp(0, 1), (SIDE, SIDE), mode="area")


def read_judge(path: Path) -> Judge:
    """The judge saved at `path`, in evaluation mode.  Raises KLoraError if the file is missing or damaged."""
    if not path.is_file():
        raise KLoraError(f"the toy's judge is not there ({path.name} is missing)")
    judge = Judge()
    try:
        judge.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise KLoraError(f"the toy's judge cannot be loaded ({quote_first_line(error)})") from None
    return judge.float().eval()


def write_judge(judge: Judge, path: Path) -> None:
    """Save the judge at `path`, in fp16."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    safetensors.torch.save_file(state, path)
