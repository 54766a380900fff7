"""The axes of the XYZ plot: one for each setting, and one that compares methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from ..errors import KLoraError, SettingsError
from ..settings import FIELDS, SCALES, Field, read_settings
from .refuse import KLoraRefused

ATTRIBUTE = "klora_axes"  # on p: setting → value, which replaces the panel's
LORAS = ("content", "style")
# Axes with a cost vary slower than those with less: another LoRA is read, another k or method measured anew.  The host's
# own: 1 for another checkpoint, 0.7 for a VAE.
COSTS = {"content": 0.6, "style": 0.5, "k": 0.2, "method": 0.2}
COMPARE = "K-LoRA compare methods"
METHODS_TO_COMPARE = ("content", "style", "direct", "switch", "klora", "klora s*", "est", "np", "average", "ties")


def add_axes(grid: ModuleType, loras: Callable[[], list[str]], check_lora: Callable[[str], Any]) -> None:
    """Append our axes to the host's xyz_grid module, only once; when the UI is reloaded, there is a new module.

    Args: loras: the listed names.  check_lora: raises SettingsError for a name or alias that stands for no LoRA.
    """
    labels = {option.label for option in grid.axis_options}
    for field in FIELDS:
        if field.infotext not in labels:
            grid.axis_options.append(make_axis(grid, field, loras, check_lora))
    if COMPARE not in labels:
        grid.axis_options.append(make_comparison(grid))


def make_axis(grid: ModuleType, field: Field, loras: Callable[[], list[str]], check_lora: Callable[[str], Any]) -> Any:
    choices = loras if field.name in LORAS else (lambda: list(field.choices)) if field.choices else None

    def apply(p: Any, value: Any, values: Any) -> None:
        change_settings(p, {field.name: value})

    def confirm(p: Any, values: list[Any]) -> None:
        refuse_empty(field.infotext, values)
        for value in values:
            read = getattr(read_settings({field.name: value}), field.name)
            if field.name in LORAS:
                check_name(read)

    def check_name(name: str) -> None:
        try:
            if not name:
                raise SettingsError("no LoRA is chosen")
            check_lora(name)
        except SettingsError as e:
            raise e.blame(field.name) from None

    return grid.AxisOption(
        field.infotext,
        str if field.sweep is str else Number(field.sweep),
        apply,
        confirm=refuse_in_words(confirm),
        cost=COSTS.get(field.name, 0.0),
        choices=choices,
    )


def make_comparison(grid: ModuleType) -> Any:
    """The axis of methods that are worth comparing.  Without values it has all of them."""

    def confirm(p: Any, values: list[Any]) -> None:
        values.extend(METHODS_TO_COMPARE if not values else ())  # the plot goes on with this very list
        for value in values:
            read_settings(parse_method(value))

    return grid.AxisOption(
        COMPARE,
        str,
        lambda p, value, values: change_settings(p, parse_method(value)),
        format_value=lambda p, option, value: value,
        confirm=refuse_in_words(confirm),
        cost=COSTS["method"],
        choices=lambda: list(METHODS_TO_COMPARE),
    )


def parse_method(value: str) -> dict[str, str]:
    """`klora` or `klora s*`: a method, and the scale, which is s if it is not given."""
    method, _, scale = value.partition(" ")
    return {"method": method, "scale": scale.strip() or SCALES[0]}


def change_settings(p: Any, values: Mapping[str, Any]) -> None:
    setattr(p, ATTRIBUTE, {"enabled": True, **read_axes(p), **values})


def refuse_empty(label: str, values: list[Any]) -> None:
    if not values:
        raise SettingsError(f"the axis {label!r} of the plot has no values")


def refuse_in_words(confirm: Callable[[Any, list[Any]], None]) -> Callable[[Any, list[Any]], None]:
    """``confirm``, which the plot calls before the first cell, with its errors as the API and the UI can show them."""

    def confirm_or_refuse(p: Any, values: list[Any]) -> None:
        try:
            confirm(p, values)
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from None

    return confirm_or_refuse


class Number:
    """The type of an axis of numbers: to the plot it is ``kind``, so that ranges work.

    But it leaves what is no number as it is, for ``confirm`` to refuse: an error of ``kind`` would be the API's 500.
    """

    def __init__(self, kind: type):
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return other is self.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __call__(self, value: Any) -> Any:
        try:
            return self.kind(value)
        except (ValueError, TypeError, OverflowError):
            return value


def read_axes(p: Any) -> Mapping[str, Any]:
    """The values of a plot's axes for this cell.  The cells are copies of one p, so this mapping must not be changed."""
    return getattr(p, ATTRIBUTE, {})


def apply_axes(given: Mapping[str, Any], p: Any) -> dict[str, Any]:
    """Raw settings, with the values of the plot's axes in place of the panel's or of a tag's.

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
