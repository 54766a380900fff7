"""The colours of the map: for each mask, and paler where a layer leaves no choice."""

from __future__ import annotations

from collections.abc import Mapping

Colour = tuple[int, int, int]
Palette = tuple[Colour, Colour, Colour, Colour]  # index: the mask; none, content, style, both

MASK_NAMES = ("none", "content", "style", "both")
PALETTES: Mapping[str, Palette] = {
    "blue and green": ((214, 214, 214), (66, 114, 186), (98, 168, 88), (112, 86, 150)),  # the paper's, figure 6
    "blue and orange": ((214, 214, 214), (0, 90, 181), (230, 145, 0), (150, 90, 140)),  # told apart by the colour-blind too
}
DEFAULT = "blue and green"
PALE = 0.5  # how much of white is in the colour of a layer without a choice


def find_palette(name: object) -> Palette:
    """The palette with this name; the default if there is none."""
    return PALETTES.get(str(name), PALETTES[DEFAULT])


def make_pale(colour: Colour) -> Colour:
    """The colour where nothing is chosen: only one LoRA has the layer, or ``layers`` leaves it out."""
    red, green, blue = (round(part + (255 - part) * PALE) for part in colour)
    return red, green, blue


def format_colour(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
