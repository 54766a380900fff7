"""The settings: ``Settings`` has their defaults, FIELDS everything else.  Panel, API, infotext, XYZ plot, command line and
README are derived from these two."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import KLoraError, SettingsError, join_errors, list_offenders, shorten

METHODS = (
    "klora", "direct", "fixed", "random", "topk", "no-gamma", "switch", "content", "style",
    "est", "np", "blora", "average", "ties",
)  # fmt: skip
SCALES = ("s", "s*")
LAYERS = ("all", "attention", "attention-only")
PROGRESS = ("steps", "noise")
ENGINES = ("auto", "merge", "bypass")
HIRES = ("same", "off", "own")
GAMMAS = ("auto", "mean-ratio")
KS = ("auto", "all")


@dataclass(frozen=True)
class Settings:
    """One valid value for each field.

    None for ``beta`` and the text encoder weights means that the value follows from other settings.  All defaults are here.
    """

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
    switch_every: int = 2
    balance: float = 0.0
    mu: float = 0.5
    density: float = 0.2
    hires: str = "same"
    hires_balance: float = 0.0

    def __post_init__(self) -> None:
        if self.scale == "s*" and self.alpha == 0:
            raise SettingsError("must be above 0 with scale s*, which is taken modulo alpha", "alpha")

    @property
    def offset(self) -> float:
        """β of S(t): the given value, else 0.5 for S and 0.85·α for S*."""
        if self.beta is not None:
            return self.beta
        return 0.85 * self.alpha if self.scale == "s*" else 0.5

    @property
    def for_hires(self) -> Settings | None:
        """What the hires pass of this job draws with; None if it has nothing of the pair."""
        if self.hires == "off" or not self.enabled:
            return None
        return replace(self, balance=self.hires_balance) if self.hires == "own" else self

    @property
    def weights(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(text encoder, denoiser) weights of content and of style; a text encoder weight that is None is the denoiser's."""
        content, style = self.content_te_weight, self.style_te_weight
        return (
            (self.content_weight if content is None else content, self.content_weight),
            (self.style_weight if style is None else style, self.style_weight),
        )


DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Settings)}


def _read_number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError
    return number


def read_integer(value: Any, low: int, high: int) -> int:
    """Raises ValueError if it is none, or out of range."""
    number = _read_number(value, low, high)
    if number != int(number):
        raise ValueError
    whole = value if isinstance(value, int) else int(number)  # a float has no room for all digits of a seed
    if not low <= whole <= high:
        raise ValueError
    return whole


@dataclass(frozen=True)
class Field:
    """One setting.  ``read`` converts a value from the user, a request or an infotext; it raises ValueError if invalid."""

    name: str
    label: str
    help: str  # one sentence for the user
    read: Callable[[Any], Any]
    accepts: str  # completes the sentence "must be …"
    choices: tuple[str, ...] = ()
    range: tuple[float, float, float] | None = None  # of the slider: minimum, maximum, step
    sweep: type = str  # to which the XYZ plot converts a value
    methods: tuple[str, ...] = METHODS  # that use the setting

    @property
    def default(self) -> Any:
        return DEFAULTS[self.name]

    @property
    def infotext(self) -> str:
        return f"K-LoRA {self.name}"


def _flag(name: str, label: str, help: str) -> Field:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

    def read(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, (int, str)) or (word := str(value).lower()) not in words:
            raise ValueError
        return words[word]

    return Field(name, label, help, read, "true or false", choices=("True", "False"))


def _choice(name: str, choices: tuple[str, ...], label: str, help: str) -> Field:
    def read(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else None
        if word not in choices:
            raise ValueError
        return word

    return Field(name, label, help, read, "one of " + ", ".join(choices), choices=choices)


def _lora(name: str, label: str, help: str) -> Field:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return "" if value.strip() in ("", "None") else value  # with its blanks: a file's name may begin with one

    return Field(name, label, help, read, "the name of a LoRA as the WebUI lists it")


def _real(name: str, label: str, help: str, range: tuple[float, float, float], low: float, high: float) -> Field:
    """A number.  If the default is None, an empty value is read as None."""

    def read(value: Any) -> float | None:
        if DEFAULTS[name] is None and (value is None or value == ""):
            return None
        return _read_number(value, low, high)

    bounds = f"a number from {low:g} to {high:g}" + (", or empty" if DEFAULTS[name] is None and low < 0 else "")
    return Field(name, label, help, read, bounds, range=range, sweep=float)


def _gamma(name: str, label: str, help: str) -> Field:
    def read(value: Any) -> str | float:
        word = value.strip().lower() if isinstance(value, str) else value
        return word if word in GAMMAS else _read_number(word, math.ulp(0.0), 1e9)

    return Field(name, label, help, read, "auto, mean-ratio or a number above 0", choices=GAMMAS)


def _k(name: str, label: str, help: str) -> Field:
    def read(value: Any) -> str | int:
        word = value.strip().lower() if isinstance(value, str) else value
        return word if word in KS else read_integer(word, 1, 2**53)

    return Field(name, label, help, read, "auto, all or a whole number above 0", choices=KS)


def _whole(name: str, label: str, help: str, range: tuple[int, int, int]) -> Field:
    bounds = f"a whole number from {range[0]} to {range[1]}"
    return Field(name, label, help, lambda v: read_integer(v, range[0], range[1]), bounds, range=range, sweep=int)


WEIGHT: dict[str, Any] = dict(range=(-2, 2, 0.05), low=-100, high=100)
WITH_SCALE = ("klora", "fixed", "no-gamma", "est", "average")
WITH_BALANCE = ("klora", "fixed", "topk", "no-gamma", "est", "average")

# The order is the order of the positional API arguments: append only.
FIELDS: tuple[Field, ...] = (
    _flag("enabled", "K-LoRA", "Draw with one of two LoRAs, content or style, chosen for every layer and step."),
    _lora("content", "Content LoRA", "The LoRA of the subject; its trigger words still belong in the prompt."),
    _lora("style", "Style LoRA", "The LoRA of the style; its trigger words still belong in the prompt."),
    _real("content_weight", "Content weight",
          "How strongly the content LoRA acts where it is chosen; it does not change which LoRA is chosen.", **WEIGHT),
    _real("style_weight", "Style weight",
          "How strongly the style LoRA acts where it is chosen; it does not change which LoRA is chosen.", **WEIGHT),
    _real("content_te_weight", "Content text encoder weight",
          "How strongly the content LoRA acts on the text encoders; empty: the same as its weight.", **WEIGHT),
    _real("style_te_weight", "Style text encoder weight",
          "How strongly the style LoRA acts on the text encoders; empty: the same as its weight.", **WEIGHT),
    _choice("method", METHODS, "Method", "How the two share layers and steps: klora is the paper's rule, direct adds both."),
    replace(_real("alpha", "α",
                  "How much the threshold grows from the first step to the last; higher means more style late.",
                  (0, 5, 0.05), 0, 1e9), methods=WITH_SCALE),
    replace(_real("beta", "β", "The threshold at the first step; higher means more style; empty: 0.5, or 0.85·α with s*.",
                  (0, 5, 0.005), 0, 1e9), methods=WITH_SCALE),
    replace(_gamma("gamma", "γ", "Balances two LoRAs of different strength: auto (the ratio of their sums), mean-ratio (the "
                   "mean of the layers' ratios without outliers), or a number above 0."),
            methods=("klora", "fixed", "est", "average")),
    replace(_choice("scale", SCALES, "Scale", "s grows from content to style; s* begins with style (for Flux)."),
            methods=WITH_SCALE),
    replace(_k("k", "K", "How many of a layer's largest elements are compared: auto (the product of both ranks), all, or a "
               "whole number."), methods=("klora", "topk", "no-gamma", "average")),
    _choice("layers", LAYERS, "Layers", "Where the rule chooses: in all layers; in attention, with both LoRAs elsewhere; or "
            "in attention only, with no LoRA elsewhere."),
    _choice("progress", PROGRESS, "Progress", "What moves the choice on: the count of steps, or the noise level."),
    _choice("engine", ENGINES, "Engine", "merge rewrites the model's weights and gives them back; bypass adds beside them; "
            "auto takes merge wherever the weights are plain numbers."),
    _flag("show_map", "Show the selection map", "Append a picture of which LoRA acted in which layer and step."),
    replace(_whole("switch_every", "Steps between two switches",
                   "After how many steps the method switch changes to the other LoRA; 2 suits 20 to 30 steps, 5 was meant "
                   "for 100 and more.", (1, 150, 1)), methods=("switch",)),
    replace(_real("balance", "Balance", "Above 0: more style; below 0: more content.", (-3, 3, 0.1), -3, 3),
            methods=WITH_BALANCE),
    replace(_real("mu", "μ", "How far the method np takes the content out of the directions that the style uses: 0 adds "
                  "both as they are, a large number takes it out altogether.", (0, 10, 0.05), 0, 1e9), methods=("np",)),
    replace(_real("density", "Density", "What share of each layer's largest elements the method ties keeps of either LoRA.",
                  (0.01, 1, 0.01), 1e-6, 1), methods=("ties",)),
    _choice("hires", HIRES, "Hires pass", "What the hires pass draws with: the same, off (nothing of either LoRA), or own "
            "(the same pair with the hires balance)."),
    replace(_real("hires_balance", "Hires balance", "The balance of the hires pass, if that is set to own.", (-3, 3, 0.1),
                  -3, 3), methods=WITH_BALANCE),
)  # fmt: skip
BY_NAME: Mapping[str, Field] = {f.name: f for f in FIELDS}


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from names and raw values; other settings get their default.  Raises SettingsError with all offenders."""
    return Settings(**read_values(given, BY_NAME))


def read_values(given: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
    """The values in ``given``, read by the ``known`` fields.

    Raises SettingsError with every field whose value is invalid, and with the first few of the names that are unknown.
    """
    errors: list[KLoraError] = []
    if unknown := [quote_value(name) for name in given if name not in known]:
        verb = "is not a K-LoRA setting" if len(unknown) == 1 else "are not K-LoRA settings"
        errors.append(SettingsError(f"{verb}; there are {', '.join(known)}", list_offenders(unknown)))
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            continue
        try:
            values[name] = known[name].read(value)
        except (ValueError, TypeError, OverflowError):
            errors.append(SettingsError(f"must be {known[name].accepts}, not {quote_value(value)}", name))
    if errors:
        raise join_errors(errors)
    return values


def name_arguments(args: Sequence[Any]) -> dict[str, Any]:
    """A script's arguments by name.  ``args``: a single dict (API), or one value per field in the order of FIELDS."""
    if args and isinstance(args[0], Mapping):
        return dict(args[0])
    return {f.name: value for f, value in zip(FIELDS, args)}


QUOTED = 60  # characters


def quote_value(value: Any) -> str:
    """A user's value for use in a sentence: one line, at most 60 characters, valid in JSON; of large ones the beginning."""
    try:
        text = repr(value[:QUOTED]) if isinstance(value, (str, bytes)) else reprlib.repr(value)
    except ValueError:  # Python does not print integers with very many digits
        text = f"a huge {type(value).__name__}"
    return shorten(text, QUOTED)


assert [f.name for f in fields(Settings)] == [f.name for f in FIELDS]  # both must have the same fields in the same order
