"""Does a pair fit the loaded model, and where does each of its units act?"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.pairing import SHOWN, Pair, Unit, flat
from ..core.plan import Plan
from ..core.selectors import CONTENT, STYLE
from ..errors import PairError
from .session import Placed
from .site import Load, Loads, Site


def place(
    plan: Plan, pair: Pair, sites: Mapping[str, Site], weights: tuple[float, float], checkpoint: str
) -> tuple[list[Placed], list[str]]:
    """Every unit of the pair on its site, and the names of those the model does not have.

    Args: weights: the user's denoiser weights of content and style.
    Raises PairError where shapes differ, or no layer that both LoRAs touch is in the model.
    """
    refuse_other_shapes(pair, sites, checkpoint)
    rows = [*range(len(plan.units)), *[None] * len(pair.added)]
    placed, missing = [], []
    for row, unit in zip(rows, (*plan.units, *pair.added)):
        site = sites.get(unit.name)
        if site is None:
            missing.append(unit.name)
            continue
        loads = Loads(*(Load(d, w) if d is not None else None for d, w in zip((unit.content, unit.style), weights)))
        placed.append(Placed(row, added_mask(plan, unit), site, loads))
    if not any(unit.shared and unit.name in sites for unit in pair.units):
        raise PairError(f"none of the layers that both LoRAs touch is in {checkpoint!r}, {pair.units[0].name} is not")
    return placed, missing


def added_mask(plan: Plan, unit: Unit) -> int:
    """Norms and biases are not chosen: both LoRAs' are added, or the one LoRA's that the method leaves."""
    if plan.layers == "attention-only":
        return 0
    return {"content": CONTENT, "style": STYLE}.get(plan.method, CONTENT | STYLE)


def refuse_other_shapes(pair: Pair, sites: Mapping[str, Site], checkpoint: str) -> None:
    bad = [u for u in (*pair.units, *pair.added) if u.name in sites and not fits(u, sites[u.name])]
    if not bad:
        return
    both = [(u.name, text(u.shape), text(sites[u.name].shape)) for u in bad[:SHOWN]]
    facts = "; ".join(f"{name} is {ours} in the LoRAs, {theirs} in the model" for name, ours, theirs in both)
    more = f", and {len(bad) - SHOWN} layers more" if len(bad) > SHOWN else ""
    raise PairError(
        f"{pair.content.name!r} and {pair.style.name!r} are not made for the model of {checkpoint!r}: {facts}{more}"
    )


def fits(unit: Unit, site: Site) -> bool:
    """Same rows and columns; an inpainting model's first convolution has 9 input channels where the LoRA has 4.

    A bias alone has rows only.
    """
    ours, theirs = unit.shape, site.shape
    if len(ours) == 1:
        return ours[0] == theirs[0]
    if len(theirs) == 4 and theirs[1] == 9 and len(ours) == 4 and ours[1] == 4:
        return ours[0] == theirs[0] and ours[2:] == theirs[2:]
    return flat(ours) == flat(theirs)


def text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
