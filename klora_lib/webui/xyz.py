"""One axis of the XYZ plot for each setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from ..errors import KLoraError, SettingsError
from ..settings import FIELDS, Field, quote_value, read_settings
from .refuse import KLoraRefused

ATTRIBUTE = "klora_axes"  # on p: setting → value, which replaces the panel's


def add_axes(grid: ModuleType, loras: Callable[[], list[str]]) -> None:
    """Append our axes to the host's xyz_grid module, only once; when the UI is reloaded, there is a new module."""
    labels = {option.label for option in grid.axis_options}
    for field in FIELDS:
        if field.infotext not in labels:
            grid.axis_options.append(make_axis(grid, field, loras))


def make_axis(grid: ModuleType, field: Field, loras: Callable[[], list[str]]) -> Any:
    choices = loras if field.name in ("content", "style") else (lambda: list(field.choices)) if field.choices else None

    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, ATTRIBUTE, {"enabled": True, **read_axes(p), field.name: value})

    def confirm(p: Any, values: list[Any]) -> None:
        """Refuses invalid values before the first cell is drawn, because the plot hides errors inside a cell."""
        try:
            for value in values:
                check_listed(getattr(read_settings({field.name: value}), field.name))
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from None

    def check_listed(value: Any) -> None:
        if field.name in ("content", "style") and value not in loras():
            raise SettingsError(f"there is no LoRA named {quote_value(value)} among the {len(loras())} listed", field.name)

    return grid.AxisOption(field.infotext, field.sweep, apply, confirm=confirm, choices=choices)


def read_axes(p: Any) -> Mapping[str, Any]:
    """The values of a plot's axes for this cell.  The cells are copies of one p, so this mapping must not be changed."""
    return getattr(p, ATTRIBUTE, {})


def apply_axes(given: Mapping[str, Any], p: Any) -> dict[str, Any]:
    """Raw settings, with the values of the plot's axes in place of the panel's.

    A panel always gives a number for β.  If it is the default for the panel's scale and α, and an axis changes one of
    these, then β is the default for the changed values.
    """
    axes = read_axes(p)
    free = {"scale", "alpha"} & axes.keys() and "beta" not in axes and has_default_beta(given)
    return {**given, **axes, "beta": None} if free else {**given, **axes}


def has_default_beta(given: Mapping[str, Any]) -> bool:
    """Whether β among these raw settings is the default for their scale and α; False if they are invalid."""
    three = {name: given[name] for name in ("scale", "alpha", "beta") if name in given}
    try:
        settings = read_settings(three)
    except KLoraError:
        return False
    return settings.beta is None or abs(settings.beta - replace(settings, beta=None).offset) < 1e-6
