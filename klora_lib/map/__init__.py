"""The picture of a plan: which LoRA acts in which layer at which step."""

from .draw import draw_plan
from .svg import draw_svg

__all__ = ["draw_plan", "draw_svg"]
