"""A classifier of the object and of the rendering in a picture: two small convolutional networks."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import KLoraError, quote_first_line
from . import shapes, styles

THINGS, LOOKS = list(shapes.OBJECTS), list(styles.STYLES)


class Judge(nn.Module):
    """[n, 3, 64, 64] in 0…1 -> (logits over THINGS, logits over LOOKS)."""

    def __init__(self) -> None:
        super().__init__()
        self.shape, self.texture = make_convolutions(3, 24, 48, 80, 112), make_convolutions(3, 24, 48, 80)
        self.thing, self.look = nn.Linear(112 * 4 * 4, len(THINGS)), nn.Linear(80, len(LOOKS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        pictures = pictures * 2 - 1
        shape: Tensor = self.shape(pictures)  # [n, 112, 4, 4]; positions are kept, as they show the object
        texture: Tensor = self.texture(pictures)  # [n, 80, 8, 8]; the mean over positions shows the rendering
        return self.thing(shape.flatten(1)), self.look(texture.mean((2, 3)))

    @torch.no_grad()
    def score(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, 64, 64] in 0…1 -> (probabilities over THINGS, over LOOKS)."""
        thing, look = self(pictures.float().clamp(0, 1))
        return thing.softmax(1), look.softmax(1)


def make_convolutions(*widths: int) -> nn.Sequential:
    """One convolution from each number of channels to the next; each halves height and width."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


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
