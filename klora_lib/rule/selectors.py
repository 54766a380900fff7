"""The methods: each a pure function (facts about a pair, progress) → which LoRAs act, as a mask per unit and moment.

A mask has bit CONTENT and bit STYLE.  Every selector takes ``progress`` float64 [T] and returns uint8 [units, T] (or
anything that broadcasts to it); what a LoRA does not touch is cut off afterwards, in one place (``select``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .schedule import scale_s, scale_s_star
from .scoring import Scores

NONE, CONTENT, STYLE, BOTH = 0, 1, 2, 3
LETTERS = "NCSB"  # LETTERS[mask]


@dataclass(frozen=True)
class Facts:
    """The input of a selector.  Every tensor has one entry per unit."""

    scores: Scores
    gamma: float
    present: Tensor  # uint8: the mask of the LoRAs that touch the unit (and that ``layers`` lets act)
    decided: Tensor  # bool: the units for which a method chooses between the two; the others get all that is present
    alpha: float
    beta: float
    star: bool
    steps: int  # sampler steps of the pass, for the methods that count them
    switch_every: int
    seed: int
    stops: float = 0.0  # the user's balance: every threshold is multiplied by 2^stops
    names: tuple[str, ...] = ()  # of the units' layers

    def scale(self, progress: Tensor) -> Tensor:
        """S(t), or S*(t) if ``star``, times 2^balance.  [T]"""
        return (scale_s_star if self.star else scale_s)(progress, self.alpha, self.beta) * self.factor

    @property
    def factor(self) -> float:
        """2^balance."""
        return math.pow(2, self.stops)

    def about(self, i: int) -> Facts:
        """The facts of unit ``i`` alone."""
        one = slice(i, i + 1)
        return replace(
            self, scores=self.scores.about(i), present=self.present[one], decided=self.decided[one], names=self.names[one]
        )

    def step(self, progress: Tensor) -> Tensor:
        """The sampler step of a progress.  1e-6 corrects for rounding in t/T·T.  int64 [T]"""
        return torch.floor(progress * self.steps + 1e-6).long()


Selector = Callable[[Facts, Tensor], Tensor]


def choose_content(facts: Facts, content: Tensor) -> Tensor:
    """Content where ``content`` (bool [units, T]) is true, else style; both for units without a decision."""
    chosen = torch.where(content, CONTENT, STYLE)
    return torch.where(facts.decided[:, None], chosen, BOTH)


def klora(facts: Facts, progress: Tensor) -> Tensor:
    """Content where S_c ≥ γ·S(t)·S_s (paper, equations 5 to 8)."""
    s = facts.scores
    return choose_content(facts, s.content_topk[:, None] >= facts.gamma * facts.scale(progress) * s.style_topk[:, None])


def no_gamma(facts: Facts, progress: Tensor) -> Tensor:
    """Content where S_c ≥ S(t)·S_s: the ablation without the balancing factor."""
    s = facts.scores
    return choose_content(facts, s.content_topk[:, None] >= facts.scale(progress) * s.style_topk[:, None])


def topk(facts: Facts, progress: Tensor) -> Tensor:
    """Content where S_c ≥ 2^balance·S_s, at every step: the ablation without S and γ."""
    s = facts.scores
    return choose_content(facts, (s.content_topk >= facts.factor * s.style_topk)[:, None].expand(-1, len(progress)))


def fixed(facts: Facts, progress: Tensor) -> Tensor:
    """Content everywhere while γ·S(t) < 1, then style everywhere ("fixed selection")."""
    return choose_content(facts, (facts.gamma * facts.scale(progress) < 1)[None, :].expand(len(facts.present), -1))


def random(facts: Facts, progress: Tensor) -> Tensor:
    """Content with probability 1/3, per unit and step, drawn from the image's seed ("random selection")."""
    columns = [draw_uniform(len(facts.present), facts.seed, int(t)) for t in facts.step(progress)]
    return choose_content(facts, torch.stack(columns, 1) < 1 / 3)


def draw_uniform(n: int, seed: int, step: int) -> Tensor:
    """n uniform numbers that depend only on seed and step.  An own generator leaves the host's noise as it is."""
    return torch.rand(n, generator=torch.Generator().manual_seed((seed * 1000003 + step) % 2**63))


def switch(facts: Facts, progress: Tensor) -> Tensor:
    """LoRA Switch (arXiv 2402.16843): whole LoRAs in turn, content first, each for ``switch_every`` steps."""
    turn = facts.step(progress) // facts.switch_every % 2
    return torch.where(turn == 0, CONTENT, STYLE)[None, :]


def direct(facts: Facts, progress: Tensor) -> Tensor:
    """Both added everywhere: the additive merge."""
    return torch.full((1, len(progress)), BOTH)


def content(facts: Facts, progress: Tensor) -> Tensor:
    """The content LoRA only.  Layers that only style has keep the model's weights."""
    return torch.full((1, len(progress)), CONTENT)


def style(facts: Facts, progress: Tensor) -> Tensor:
    """The style LoRA only.  Layers that only content has keep the model's weights."""
    return torch.full((1, len(progress)), STYLE)


def est(facts: Facts, progress: Tensor) -> Tensor:
    """EST-LoRA (arXiv 2508.02165): content where E_c ≥ γ_E·(α·t/T + D)·E_s, E = ‖ΔW‖², γ_E = ΣE_c/ΣE_s.

    D, how much the style's images differ from the content's, stands in β's place.  The authors' published code takes the
    ratio without the squares; only with them does the strength of either file not matter.  ``facts.scores`` are energies.
    """
    return klora(facts, progress)


def blora(facts: Facts, progress: Tensor) -> Tensor:
    """B-LoRA's split (arXiv 2403.14572), for SDXL: content in one block, style in the next, nothing elsewhere."""
    return torch.tensor([find_side(name) for name in facts.names])[:, None].expand(-1, len(progress))


BLOCKS = {"content": "up_blocks.0.attentions.0.", "style": "up_blocks.0.attentions.1."}  # of SDXL, in diffusers' names


def find_side(layer: str) -> int:
    """The mask of a layer in B-LoRA's split."""
    return CONTENT * layer.startswith(BLOCKS["content"]) | STYLE * layer.startswith(BLOCKS["style"])


SELECTORS: Mapping[str, Selector] = {
    "klora": klora,
    "direct": direct,
    "fixed": fixed,
    "random": random,
    "topk": topk,
    "no-gamma": no_gamma,
    "switch": switch,
    "content": content,
    "style": style,
    "est": est,
    "np": direct,
    "blora": blora,
    "average": direct,
    "ties": direct,
}
BY_ENERGY = ("est", "np", "blora", "ties")  # the methods that look at energies, or at no sums at all


def select(method: str, facts: Facts, progress: Tensor) -> Tensor:
    """The table: which LoRAs act, uint8 [units, T], for every ``progress`` (float64 [T])."""
    return (SELECTORS[method](facts, progress) & facts.present[:, None]).to(torch.uint8)
