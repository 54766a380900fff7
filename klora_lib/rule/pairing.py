"""Two LoRA files, layer by layer: the units between which the rule chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LONGEST_NAME, MAX_LISTED, PairError, shorten
from ..lora.deltas import UNKNOWN, Delta, fuse_parts
from ..lora.file import LoraFile
from ..lora.keys import find_fused, is_attention, list_members
from ..lora.rows import find_heights
from ..lora.traits import find_difference


@dataclass(frozen=True)
class Unit:
    """The modules of both LoRAs for one layer, between which the rule chooses.  One of them may be absent."""

    name: str  # diffusers-style dotted path in the denoiser
    content: Delta | None
    style: Delta | None

    @property
    def shared(self) -> bool:
        return self.content is not None and self.style is not None

    @property
    def attention(self) -> bool:
        return is_attention(self.name)

    @property
    def relative(self) -> bool:
        """Whether the ΔW of one of the two depends on the model's weight."""
        return any(delta is not None and delta.relative for delta in (self.content, self.style))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ΔW as in the file: [out, in] or [out, in, kh, kw].  A size that neither LoRA tells is UNKNOWN."""
        shapes = [delta.shape for delta in (self.content, self.style) if delta is not None]
        whole = next((shape for shape in shapes if UNKNOWN not in shape), None)
        return whole or tuple(max(sizes) for sizes in zip(*map(flatten_shape, shapes)))

    @property
    def elements(self) -> int:
        """Number of elements of ΔW; 0 if its shape is not known."""
        out, columns = flatten_shape(self.shape)
        return out * columns


@dataclass(frozen=True)
class Pair:
    """Content and style, aligned by layer.  ``units``: what the rule chooses from.  ``added``: norms and biases."""

    content: LoraFile
    style: LoraFile
    units: tuple[Unit, ...]
    added: tuple[Unit, ...]

    @property
    def shared(self) -> bool:
        """Whether any layer has both LoRAs, so that there is something to choose."""
        return any(unit.shared for unit in self.units)

    @property
    def relative(self) -> bool:
        """Whether the pair's scores depend on the model's weights (OFT, BOFT, IA3)."""
        return any(unit.relative for unit in self.units)


def make_pair(content: LoraFile, style: LoraFile) -> Pair:
    """Align two LoRAs.

    Raises PairError if a common layer has two shapes, or if they have no common layer and are for different models.
    """
    one, two = match_granularity(content.modules, style.modules), match_granularity(style.modules, content.modules)
    units = tuple(Unit(name, one.get(name), two.get(name)) for name in dict.fromkeys([*one, *two]))
    added = tuple(
        Unit(name, content.added.get(name), style.added.get(name)) for name in dict.fromkeys([*content.added, *style.added])
    )
    refuse_two_shapes(content.name, style.name, units + added)
    pair = Pair(content, style, units, added)
    if not pair.shared:
        refuse_two_architectures(content, style)
    return pair


def refuse_two_architectures(content: LoraFile, style: LoraFile) -> None:
    """Raise PairError if two LoRAs without a common layer are for different models.  (B-LoRA's halves are for one.)"""
    one, two = {**content.modules, **content.added}, {**style.modules, **style.added}
    if what := find_difference(one, two):
        examples = [shorten(next(iter(each)), LONGEST_NAME) for each in (one, two)]
        raise PairError(
            f"{content.name!r} and {style.name!r} have no denoiser layer in common and are made for different models, "
            f"{what}: {len(one)} layers like {examples[0]}, and {len(two)} like {examples[1]}"
        )


def match_granularity(own: Mapping[str, Delta], other: Mapping[str, Delta]) -> dict[str, Delta]:
    """``own``, with split projections stacked if ``other`` has the fused weight (qkv in Flux and SD3)."""
    out: dict[str, Delta] = {}
    for name, delta in own.items():
        whole = find_fused(name)
        if whole is None or whole not in other:
            out[name] = delta
        elif whole not in out:
            out[whole] = stack_members(whole, own, flatten_shape(other[whole].shape))
    return out


def stack_members(whole: str, own: Mapping[str, Delta], size: tuple[int, int]) -> Delta:
    """The members of ``whole`` that ``own`` has, as one module; absent members are zero.

    Args: size: rows and columns of the fused weight; UNKNOWN if the other LoRA does not tell them.
    """
    parts = [own.get(m) for m in list_members(whole)]
    known = [p.shape for p in parts if p is not None]
    widths = {flatten_shape(shape)[1] for shape in known} - {UNKNOWN}
    if len(widths) > 1:
        raise PairError(f"the parts of {whole} are of different widths: {', '.join(map(format_shape, filter(None, parts)))}")
    rows, width = size[0], max(widths, default=size[1])
    tall = find_heights(parts, rows, width)
    rows = rows or sum(tall)
    if min(tall) < 1 and UNKNOWN in (*(p.shape[0] for p in parts if p is not None), size[0]):
        raise PairError(f"the files do not tell how many rows of {whole} belong to each of its parts")
    if sum(tall) != rows or min(tall) < 1:
        raise PairError(f"the parts of {whole} have {sum(tall)} rows together, the other LoRA's fused weight has {rows}")
    return fuse_parts(parts, tall)


def refuse_two_shapes(content: str, style: str, units: tuple[Unit, ...]) -> None:
    shared = [(u, u.content, u.style) for u in units if u.content and u.style]
    bad = [u for u, one, two in shared if not sizes_agree(flatten_shape(one.shape), flatten_shape(two.shape))]
    if not bad:
        return
    facts = "; ".join(
        f"{shorten(u.name, LONGEST_NAME)} is {format_shape(u.content)} and {format_shape(u.style)}" for u in bad[:MAX_LISTED]
    )
    more = f", and {len(bad) - MAX_LISTED} layers more" if len(bad) > MAX_LISTED else ""
    raise PairError(f"{content!r} and {style!r} are made for different models: {facts}{more}")


def sizes_agree(one: tuple[int, int], two: tuple[int, int]) -> bool:
    """Whether sizes are equal where both are known."""
    return all(n == m or UNKNOWN in (n, m) for n, m in zip(one, two))


def flatten_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[out, in·kh·kw]: a 1×1 convolution and a linear layer of the same sizes agree."""
    columns = 1
    for n in shape[1:]:
        columns *= n
    return shape[0], columns


def format_shape(delta: Delta | None) -> str:
    return format_sizes(delta.shape) if delta is not None else "absent"


def format_sizes(shape: tuple[int, ...]) -> str:
    return "×".join("?" if n == UNKNOWN else str(n) for n in shape)
