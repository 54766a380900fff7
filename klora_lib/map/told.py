"""The settings that made a map, as text below it."""

from __future__ import annotations

from typing import NamedTuple

from ..rule.plan import Plan
from ..settings import BY_NAME, Settings

# what decides which LoRA acts, and when; each is told where the method uses it
CHOOSING = ("balance", "alpha", "beta", "gamma", "scale", "k", "switch_every", "mu", "density")
OTHER = ("layers", "progress", "content_weight", "style_weight")  # told where they are not as usual


class Told(NamedTuple):
    """What the pictures of a plan tell beside its table: the parameters of ``draw_plan`` and ``draw_svg``."""

    names: list[str]
    choice: list[bool]
    told: list[str]


def tell_plan(plan: Plan, content: str = "", style: str = "", title: str = "") -> Told:
    """Args: content, style: what the two are called; as in the settings, if not given.  title: begins the text."""
    text = title + tell_settings(plan.settings, plan.gamma, (content, style))
    return Told([unit.name for unit in plan.units], plan.facts.decided.tolist(), [text])


def tell_settings(settings: Settings, gamma: float, names: tuple[str, str] = ("", "")) -> str:
    """One line of text."""
    content, style = (given or own for given, own in zip(names, (settings.content, settings.style)))
    values = {**vars(settings), "beta": settings.offset, "gamma": f"{settings.gamma} ({gamma:.4g})"}
    if isinstance(settings.gamma, float):
        values["gamma"] = settings.gamma
    usual = Settings()
    said = [f"{role}: {name}" for role, name in (("content", content), ("style", style)) if name]
    said.append(f"method: {settings.method}")
    said += [f"{name}: {format_value(values[name])}" for name in CHOOSING if settings.method in BY_NAME[name].methods]
    said += [f"{n}: {format_value(values[n])}" for n in OTHER if getattr(settings, n) != getattr(usual, n)]
    return "K-LoRA, " + ", ".join(said)


def format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
