"""The true pictures: what a subject looks like in a style, drawn by the style's own artists.

Some sets share one drawing of each thing, so for some pairs of LoRAs the picture exists that a fusion should draw. A
generated picture has another size and place than the drawing, so the drawing is put at several, and the best counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import KLoraError, quote_first_line
from .dataset import GROUNDS, SHIFT, SIZE, place_drawing
from .emoji import Drawing, Drawings
from .judge import Judge, shrink
from .stage import scale_pictures
from .subjects import SUBJECTS, list_truths

SIZES, SHIFTS = np.linspace(*SIZE, 4), np.linspace(-SHIFT, SHIFT, 3)
WINDOW = 7  # pixels, of the structural similarity


def list_pictures() -> dict[str, tuple[str, str]]:
    """File name -> (set, emoji): the subjects' own drawings, and the true pictures of pairs."""
    own = {name_truth(subject, None): (source, subject) for subject, source in SUBJECTS.items()}
    return own | {name_truth(*pair): row for pair, row in list_truths().items()}


def name_truth(subject: str, style: str | None) -> str:
    return f"{subject} in {style}.png" if style else f"{subject}.png"


def write_truths(drawings: Drawings, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in list_pictures().items():
        Image.fromarray(drawings[row], "RGBA").save(folder / name, optimize=True)


def read_truth(folder: Path, subject: str, style: str | None) -> Drawing:
    """A true picture, with transparency.  Raises KLoraError if it is missing or damaged."""
    path = folder / name_truth(subject, style)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGBA"))
    except OSError as e:
        raise KLoraError(f"the toy's true picture {path.name!r} cannot be read ({quote_first_line(e)})") from None


def place_everywhere(drawing: Drawing, ground: str) -> Tensor:
    """The drawing at all sizes and places that training pictures have, [36, 3, SIDE, SIDE] in 0…1."""
    placed = [
        place_drawing(drawing, GROUNDS[ground], size, np.array([x, y])) for size in SIZES for y in SHIFTS for x in SHIFTS
    ]
    return (scale_pictures(np.stack(placed)) + 1) / 2


def show_truth(folder: Path, subject: str, style: str | None, ground: str) -> Image.Image:
    """A true picture on a plain background, in the middle."""
    middle = place_drawing(read_truth(folder, subject, style), GROUNDS[ground], float(np.mean(SIZE)), np.zeros(2))
    return Image.fromarray(middle)


def compare(pictures: Tensor, truths: Tensor, judge: Judge) -> dict[str, Tensor]:
    """How much n pictures are like the best of m true ones: two numbers a picture, at most 1.

    "features": the mean cosine of the judge's features at each position.  "structure": the structural similarity of the
    brightness (Wang et al. 2004).  pictures: [n, 3, side, side], truths: [m, 3, side, side], in 0…1.
    """
    small, wanted = shrink(pictures), shrink(truths)
    ours, theirs = list_features(small, judge), list_features(wanted, judge)
    cosines = torch.stack([torch.einsum("ncp,mcp->nm", a, b) / a.shape[2] for a, b in zip(ours, theirs)]).mean(0)
    structure = torch.stack([measure_structure(one.expand_as(wanted), wanted).max() for one in small.split(1)])
    return {"features": cosines.amax(1), "structure": structure}


@torch.no_grad()
def list_features(pictures: Tensor, judge: Judge) -> list[Tensor]:
    """The features of both encoders' convolutions, each [n, channels, positions], of length 1 at each position."""
    found = []
    for features in (*run_each(judge.thing.convolutions, pictures), *run_each(judge.look.convolutions, pictures)):
        found.append(F.normalize(features.flatten(2), dim=1))
    return found


def run_each(layers: torch.nn.Module, pictures: Tensor) -> Iterator[Tensor]:
    """What comes out after each of the convolutions but the first, which sees little more than colours."""
    features = pictures * 2 - 1
    for number, layer in enumerate(layers.modules()):
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU)):
            features = layer(features)
            if isinstance(layer, torch.nn.ReLU) and number > 4:
                yield features


def measure_structure(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity of the brightness, [n], at most 1.  a, b: [n, 3, h, w] in 0…1."""
    a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    mean_a, mean_b = blur(a), blur(b)
    spread_a, spread_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))).mean((1, 2, 3))


def blur(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, WINDOW, stride=1)
