"""The picture of a plan: which LoRA acts in which layer at which step."""

from .draw import draw_plan

__all__ = ["draw_plan"]
