"""One XYZ-plot axis per setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from ..errors import KLoraError, SettingsError
from ..settings import FIELDS, Field, read_settings
from .refuse import KLoraRefused

ATTRIBUTE = "klora_axes"  # on p: setting → value, laid over the panel's


def add_axes(grid: ModuleType, loras: Callable[[], list[str]]) -> None:
    """Append our axes to the host's xyz_grid module, once; a reload of the UI makes a new module."""
    labels = {option.label for option in grid.axis_options}
    for field in FIELDS:
        if field.infotext not in labels:
            grid.axis_options.append(make_axis(grid, field, loras))


def make_axis(grid: ModuleType, field: Field, loras: Callable[[], list[str]]) -> Any:
    choices = loras if field.name in ("content", "style") else (lambda: list(field.choices)) if field.choices else None

    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, ATTRIBUTE, {"enabled": True, **axes_of(p), field.name: value})

    def confirm(p: Any, values: list[Any]) -> None:
        """The plot hides what goes wrong inside a cell, so that bad values must be refused before the first one."""
        try:
            for value in values:
                known(getattr(read_settings({field.name: value}), field.name))
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from None

    def known(value: Any) -> None:
        if field.name in ("content", "style") and value not in loras():
            raise SettingsError(f"there is no LoRA named {value!r} among the {len(loras())} listed", field.name)

    return grid.AxisOption(field.infotext, field.sweep, apply, confirm=confirm, choices=choices)


def axes_of(p: Any) -> Mapping[str, Any]:
    """What the axes of a plot say for this cell.  A plot's cells are copies of one p, so nothing here is shared."""
    return getattr(p, ATTRIBUTE, {})


def with_axes(given: Mapping[str, Any], p: Any) -> dict[str, Any]:
    """Raw settings with the plot's values laid over them.

    A panel always gives a β: where it is just the default of the panel's own scale and α, an axis that moves one of
    these moves the default along.
    """
    axes = axes_of(p)
    free = {"scale", "alpha"} & axes.keys() and "beta" not in axes and has_default_beta(given)
    return {**given, **axes, "beta": None} if free else {**given, **axes}


def has_default_beta(given: Mapping[str, Any]) -> bool:
    known = {name: given[name] for name in ("scale", "alpha", "beta") if name in given}
    try:
        settings = read_settings(known)
    except KLoraError:
        return False
    return settings.beta is None or abs(settings.beta - replace(settings, beta=None).offset) < 1e-6
