"""The one table of settings: panel, API, infotext and XYZ plot are all derived from FIELDS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import KLoraError, SettingsError, all_offenders

METHODS = ("klora", "direct", "fixed", "random", "topk", "no-gamma", "switch", "content", "style")
SCALES = ("s", "s*")
LAYERS = ("all", "attention", "attention-only")
PROGRESS = ("steps", "noise")
ENGINES = ("auto", "merge", "bypass")
GAMMAS = ("auto", "mean-ratio")


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError
    return number


def _integer(value: Any, low: int, high: int) -> int:
    number = _number(value, low, high)
    if number != int(number):
        raise ValueError
    return int(number)


@dataclass(frozen=True)
class Field:
    """One row: ``read`` turns what a user, a request or an infotext gives into the value, or raises ValueError."""

    name: str
    default: Any
    label: str
    read: Callable[[Any], Any]
    accepts: str  # completes the sentence "must be …"
    choices: tuple[str, ...] = ()
    range: tuple[float, float, float] | None = None  # slider: least, most, step
    sweep: type = str  # how the XYZ plot reads a value
    methods: tuple[str, ...] = METHODS  # those that look at it

    @property
    def infotext(self) -> str:
        return f"K-LoRA {self.name}"


def _flag(name: str, default: bool, label: str) -> Field:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]

    return Field(name, default, label, read, "true or false", choices=("True", "False"))


def _choice(name: str, choices: tuple[str, ...], label: str) -> Field:
    def read(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in choices:
            raise ValueError
        return word

    return Field(name, choices[0], label, read, "one of " + ", ".join(choices), choices=choices)


def _lora(name: str, label: str) -> Field:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return "" if value.strip() in ("", "None") else value.strip()

    return Field(name, "", label, read, "the name of a LoRA as the WebUI lists it")


def _real(name: str, default: float | None, label: str, range: tuple[float, float, float], low: float, high: float) -> Field:
    def read(value: Any) -> float | None:
        if default is None and (value is None or value == ""):
            return None
        return _number(value, low, high)

    bounds = f"a number from {low:g} to {high:g}" + (", or empty" if default is None else "")
    return Field(name, default, label, read, bounds, range=range, sweep=float)


def _beta() -> Field:
    def read(value: Any) -> float | None:
        return None if value is None or value == "" else _number(value, 0, 1e9)

    return Field("beta", None, "β", read, "a number from 0 to 1e+09", range=(0, 5, 0.005), sweep=float)


def _gamma() -> Field:
    def read(value: Any) -> str | float:
        word = value.strip().lower() if isinstance(value, str) else value
        return word if word in GAMMAS else _number(word, math.ulp(0.0), 1e9)

    return Field("gamma", "auto", "γ", read, "auto, mean-ratio or a number above 0", choices=GAMMAS)


def _k() -> Field:
    def read(value: Any) -> str | int:
        word = value.strip().lower() if isinstance(value, str) else value
        return "auto" if word == "auto" else _integer(word, 1, 2**53)

    return Field("k", "auto", "K", read, "auto or a whole number above 0", choices=("auto",))


def _whole(name: str, default: int, label: str, range: tuple[int, int, int]) -> Field:
    bounds = f"a whole number from {range[0]} to {range[1]}"
    return Field(name, default, label, lambda v: _integer(v, range[0], range[1]), bounds, range=range, sweep=int)


WEIGHT: dict[str, Any] = dict(range=(-2, 2, 0.05), low=-100, high=100)

WITH_SCALE = ("klora", "fixed", "no-gamma")

# The order is the order of the positional API arguments: append only.
FIELDS: tuple[Field, ...] = (
    _flag("enabled", False, "K-LoRA"),
    _lora("content", "Content LoRA"),
    _lora("style", "Style LoRA"),
    _real("content_weight", 1.0, "Content weight", **WEIGHT),
    _real("style_weight", 1.0, "Style weight", **WEIGHT),
    _real("content_te_weight", None, "Content text encoder weight (empty: follow)", **WEIGHT),
    _real("style_te_weight", None, "Style text encoder weight (empty: follow)", **WEIGHT),
    _choice("method", METHODS, "Method"),
    replace(_real("alpha", 1.5, "α", (0, 5, 0.05), 0, 1e9), methods=WITH_SCALE),
    replace(_beta(), methods=WITH_SCALE),
    replace(_gamma(), methods=("klora", "fixed")),
    replace(_choice("scale", SCALES, "Scale"), methods=WITH_SCALE),
    replace(_k(), methods=("klora", "topk", "no-gamma")),
    _choice("layers", LAYERS, "Layers"),
    _choice("progress", PROGRESS, "Progress"),
    _choice("engine", ENGINES, "Engine"),
    _flag("show_map", False, "Show the selection map"),
    replace(_whole("switch_every", 5, "Steps between two switches", (1, 150, 1)), methods=("switch",)),
)
BY_NAME: Mapping[str, Field] = {f.name: f for f in FIELDS}


@dataclass(frozen=True)
class Settings:
    """One value per field, already read and in range. ``beta`` None and text encoder weights None mean "by default"."""

    enabled: bool = False
    content: str = ""
    style: str = ""
    content_weight: float = 1.0
    style_weight: float = 1.0
    content_te_weight: float | None = None
    style_te_weight: float | None = None
    method: str = "klora"
    alpha: float = 1.5
    beta: float | None = None
    gamma: str | float = "auto"
    scale: str = "s"
    k: str | int = "auto"
    layers: str = "all"
    progress: str = "steps"
    engine: str = "auto"
    show_map: bool = False
    switch_every: int = 5

    def __post_init__(self) -> None:
        if self.scale == "s*" and self.alpha == 0:
            raise SettingsError("must be above 0 with scale s*, which is taken modulo alpha", "alpha")

    @property
    def offset(self) -> float:
        """β of S(t): as given, else 0.5 for S and 0.85·α for S*."""
        if self.beta is not None:
            return self.beta
        return 0.85 * self.alpha if self.scale == "s*" else 0.5

    @property
    def weights(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(text encoder, denoiser) for content and for style: the first follows the second where it is not given."""
        content, style = self.content_te_weight, self.style_te_weight
        return (
            (self.content_weight if content is None else content, self.content_weight),
            (self.style_weight if style is None else style, self.style_weight),
        )


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from names and raw values; names left out take their default. Raises SettingsError with all offenders."""
    errors: list[KLoraError] = [
        SettingsError(f"is not a K-LoRA setting; there are {', '.join(BY_NAME)}", shown(name))
        for name in given
        if name not in BY_NAME
    ]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in BY_NAME:
            continue
        try:
            values[name] = BY_NAME[name].read(value)
        except (ValueError, TypeError, OverflowError):
            errors.append(SettingsError(f"must be {BY_NAME[name].accepts}, not {shown(value)}", name))
    if errors:
        raise all_offenders(errors)
    return Settings(**values)


def named(args: Sequence[Any]) -> dict[str, Any]:
    """A script's arguments by name: a single dict (API), or one value per field in the order of FIELDS."""
    if args and isinstance(args[0], Mapping):
        return dict(args[0])
    return {f.name: value for f, value in zip(FIELDS, args)}


def shown(value: Any) -> str:
    """A user's value inside a sentence: short, one line, and safe to put into JSON."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


assert [f.name for f in fields(Settings)] == [f.name for f in FIELDS]  # the drift a reader would trip over
