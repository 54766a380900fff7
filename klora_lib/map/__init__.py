"""The picture of a plan: which LoRA acts in which layer at which step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .draw import draw_plan
    from .svg import draw_svg

__all__ = ["draw_plan", "draw_svg"]


def __getattr__(name: str) -> Any:
    """These two are imported when they are first asked for: the WebUI's settings page wants the colours alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .draw import draw_plan
    from .svg import draw_svg

    return {"draw_plan": draw_plan, "draw_svg": draw_svg}[name]
