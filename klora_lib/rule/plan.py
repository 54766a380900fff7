"""The plan of one sampling pass: which LoRA acts in which layer at which progress, known before sampling starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PairError, format_count
from ..settings import Settings
from .combiners import Acting, combine_units
from .pairing import Pair, Unit
from .scoring import Scores, find_largest, vanishes
from .selectors import BLOCKS, BOTH, CONTENT, LETTERS, STYLE, Facts, find_side, select


@dataclass(frozen=True)
class Plan:
    """Units × progress → mask, as a pure function of progress.  A table is the plan at t/T."""

    units: tuple[Unit, ...]
    facts: Facts
    method: str
    layers: str
    settings: Settings = Settings()  # frozen

    @property
    def gamma(self) -> float:
        """γ; 1 if no layer has both LoRAs, because then nothing is compared."""
        return self.facts.gamma

    @property
    def notes(self) -> list[str]:
        """What the user should know about it, one sentence each."""
        if any(unit.shared for unit in self.units):
            return []
        return ["the two LoRAs have no denoiser layer in common, so nothing is chosen: each acts on its own layers"]

    def at(self, progress: float) -> Tensor:
        """Masks of all units at ``progress`` in [0, 1).  uint8 [units]"""
        return self.over([progress])[:, 0]

    def table(self, steps: int) -> Tensor:
        """The plan of a txt2img pass of ``steps`` model calls: t/T for t = 0…T−1.  uint8 [units, steps]"""
        return self.over([t / steps for t in range(steps)])

    def over(self, progress: Sequence[float]) -> Tensor:
        """Masks of all units at each ``progress``.  uint8 [units, len(progress)]"""
        return select(self.method, self.facts, torch.tensor(progress, dtype=torch.float64))

    def changes(self, before: float, after: float) -> list[int]:
        """Indices of the units whose mask at progress ``after`` is not the one at ``before``."""
        return (self.at(before) != self.at(after)).nonzero().flatten().tolist()

    def acting(self, weights: tuple[float, float]) -> list[Acting]:
        """What acts on each unit where its mask says so.  ``weights``: the user's, of content and style."""
        return combine_units(self.method, self.units, self.facts, self.settings, weights)

    def added_mask(self, unit: Unit) -> int:
        """The mask for norms and biases, for which nothing is chosen: both LoRAs, or those that the method keeps."""
        if self.layers == "attention-only":
            return 0
        if self.method == "blora":
            return find_side(unit.name)
        return {"content": CONTENT, "style": STYLE}.get(self.method, BOTH)


def make_plan(pair: Pair, scores: Scores, settings: Settings, steps: int, seed: int = 0) -> Plan:
    """The plan that ``settings`` make of a scored pair.  ``steps``: sampler steps of the pass; ``seed``: the image's.

    Raises PairError if ``layers`` leaves no layer to decide, or if a LoRA is zero in all layers to decide.  Two LoRAs
    without a common layer are drawn, each on its own layers; then γ is 1 unless it is given.
    """
    attention = torch.tensor([u.attention for u in pair.units])
    shared = torch.tensor([u.shared for u in pair.units])
    present = torch.tensor(
        [CONTENT * (u.content is not None) + STYLE * (u.style is not None) for u in pair.units], dtype=torch.uint8
    )
    decided = shared if settings.layers == "all" else shared & attention
    if settings.layers == "attention-only":
        present = torch.where(attention, present, 0).to(torch.uint8)
    names = pair.content.name, pair.style.name
    if not pair.shared:
        refuse_nothing_left(pair, scores, present, settings.layers)
    elif not decided.any():
        both = f"{names[0]!r} and {names[1]!r}"
        raise PairError(f"{both} have no attention layer in common, and layers is {settings.layers!r}")
    else:
        refuse_zero(pair, scores, decided)
    refuse_unfit(pair, settings.method, decided)
    gamma = compute_gamma(scores, decided, settings.gamma, names)
    star = settings.scale == "s*"
    facts = Facts(
        scores, gamma, present, decided, settings.alpha, settings.offset, star, steps, settings.switch_every, seed,
        settings.balance, tuple(unit.name for unit in pair.units),
    )  # fmt: skip
    return Plan(pair.units, facts, settings.method, settings.layers, settings)


def refuse_zero(pair: Pair, scores: Scores, decided: Tensor) -> None:
    """Raise PairError if a LoRA is zero in every layer for which the rule decides."""
    shared = [unit for unit, mine in zip(pair.units, decided.tolist()) if mine]
    where = f"in all {len(shared)} layers that it shares with the other LoRA"
    for role, file, sums in (("content", pair.content, scores.content_abs), ("style", pair.style, scores.style_abs)):
        if float(sums[decided].sum()) == 0:
            raise make_zero_error(role, file.name, shared, where)


def refuse_nothing_left(pair: Pair, scores: Scores, present: Tensor, layers: str) -> None:
    """Raise PairError if one of two LoRAs without a common layer does not act: it is zero, or ``layers`` excludes it."""
    columns = (scores.content_abs, scores.style_abs)
    for role, bit, file, size in zip(("content", "style"), (CONTENT, STYLE), (pair.content, pair.style), columns):
        if not file.modules:  # norms and biases alone
            continue
        if not (present & bit).any():
            raise PairError(f"{file.name!r} has no attention layer, and layers is {layers!r}", role)
        if float(size.sum()) == 0:
            raise make_zero_error(role, file.name, pair.units, f"in all its {format_count(len(file.modules), 'layer')}")


def make_zero_error(role: str, name: str, units: Sequence[Unit], where: str) -> PairError:
    """The error for a LoRA that is zero; it says if the reason is that its numbers are too small for fp32."""
    small = [delta for unit in units if (delta := getattr(unit, role)) is not None and vanishes(delta)]
    if small:
        most = max(find_largest(delta) for delta in small)
        return PairError(f"{name!r} is zero in fp32 {where}: its numbers are too small, at most {most:.3g}", role)
    return PairError(f"{name!r} is zero {where}; was it trained?", role)


def refuse_unfit(pair: Pair, method: str, decided: Tensor) -> None:
    """Raise PairError if the method cannot work with one of the LoRAs."""
    if method == "blora":
        for role, file in (("content", pair.content), ("style", pair.style)):
            if not any(getattr(unit, role) is not None and unit.name.startswith(BLOCKS[role]) for unit in pair.units):
                told = f"{file.name!r} has no layer in {BLOCKS[role][:-1]}, in which blora puts the {role}: it is for SDXL"
                raise PairError(told, role)
    if method == "np":
        for unit, mine in zip(pair.units, decided.tolist()):
            if mine and unit.style is not None and unit.style.asks_base:
                told = f"{pair.style.name!r} is a DoRA or its like in {unit.name}, and acts in all directions that the "
                raise PairError(told + "model's weight has: np would leave nothing of the content", "style")


def compute_gamma(scores: Scores, decided: Tensor, gamma: str | float, names: tuple[str, str]) -> float:
    """γ over the ``decided`` units: Σ Σ|ΔW_c| / Σ Σ|ΔW_s| ("auto", paper equation 7), the trimmed mean of the
    per-layer ratios ("mean-ratio": those under 3 times their mean), or the number given.  1 where no unit is decided."""
    if not decided.any():
        return gamma if isinstance(gamma, float) else 1.0
    content, style = scores.content_abs[decided], scores.style_abs[decided]
    if isinstance(gamma, float):
        return gamma
    if gamma == "auto":
        return float(content.sum() / style.sum())
    ratios = (content / style)[style > 0]
    if float(ratios.sum()) == 0:
        raise PairError(f"no layer has both {names[0]!r} and {names[1]!r} other than zero, so it has no mean ratio", "gamma")
    return float(ratios[ratios < 3 * ratios.mean()].mean())


def format_row(row: Tensor) -> str:
    """A row of masks as text: one of C, S, B (both), N (none) a step."""
    return "".join(LETTERS[m] for m in row.tolist())
