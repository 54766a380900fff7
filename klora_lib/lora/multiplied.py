"""Updates that multiply the weight instead of adding to it: OFT, BOFT and IA3.

ΔW = W' − W needs the weight W, so these have no ``dense``.  A file tells only one side of W; the other is UNKNOWN in
``shape``.  A user's weight w gives W + w·ΔW, as kohya and LyCORIS do for OFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .deltas import UNKNOWN, Delta, widen
from .misfit import Misfit, format_size

Parts = Mapping[str, Tensor]
NEUMANN_TERMS = 5  # of PEFT's series, where no configuration says how many
MOST_TERMS = 100


@dataclass(frozen=True, eq=False)
class Turned(Delta):
    """OFT and BOFT: W' = scale · R_m … R_1 W, each R_i orthogonal in blocks of rows; by columns where ``on_input``.

    turns: R − I, fp32 [stages, blocks, n, n]; one block on the input may stand for all (PEFT's block_share).
    orders: which row comes at which place of the blocks, int64 [stages, rows]; None: as they are (OFT).
    rescale: what an output row is multiplied by, [out, 1].
    rank: the block size, the dim that these are trained with in LyCORIS and PEFT.
    """

    turns: Tensor
    orders: Tensor | None
    rescale: Tensor | None
    on_input: bool
    shape: tuple[int, ...]
    asks_base = relative = True
    bias: Tensor | None = None

    @property
    def rank(self) -> int:  # type: ignore[override]
        return self.turns.shape[-1]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        out, inner = shape[0], torch.Size(shape[1:]).numel()
        blocks, n = self.turns.shape[1:3]
        if self.on_input:
            fits = inner % n == 0 if blocks == 1 else inner == blocks * n
        else:
            fits = out == blocks * n
        return fits and (self.rescale is None or self.rescale.shape[0] == out)

    def update(self, base: Tensor) -> Tensor:
        rows = base.T if self.on_input else base
        change = torch.zeros_like(rows)
        for stage, turn in enumerate(self.turns.to(base.device)):
            change = change + self.turned(turn, stage, rows + change)
        change = change.T.contiguous() if self.on_input else change
        if self.rescale is None:
            return change
        scale = widen(self.rescale, base.device)
        return change.mul_(scale).add_(base * (scale - 1))

    def turned(self, turn: Tensor, stage: int, rows: Tensor) -> Tensor:
        """(R − I) @ rows of one stage."""
        order = None if self.orders is None else self.orders[stage].to(rows.device)
        placed = rows if order is None else rows[order]
        moved = (turn @ placed.reshape(-1, turn.shape[-1], rows.shape[1])).reshape(rows.shape)
        return moved if order is None else torch.empty_like(moved).index_copy_(0, order, moved)

    def rows(self, first: int, last: int) -> Turned | None:
        """The same for the output rows [first, last) of the weight; None where blocks reach beyond them."""
        rescale, bias = (None if t is None else t[first:last] for t in (self.rescale, self.bias))
        if self.on_input:
            return Turned(self.turns, self.orders, rescale, True, (last - first, *self.shape[1:]), bias)
        n = self.rank
        if self.orders is not None or first % n or last % n:
            return None
        return Turned(self.turns[:, first // n : last // n], None, rescale, False, (last - first, *self.shape[1:]), bias)


@dataclass(frozen=True, eq=False)
class Scaled(Delta):
    """IA3: ΔW = factor · W, one number for each output row, or for each input channel where ``on_input``.

    scales_bias: the same acts on the layer's bias (PEFT); it is that of the output.
    """

    factor: Tensor  # [out] or [in]
    on_input: bool
    scales_bias: bool = False
    asks_base = relative = True
    rank: int = 1
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return UNKNOWN if self.on_input else self.factor.numel(), UNKNOWN

    @property
    def bias_factor(self) -> Tensor | None:
        return self.factor if self.scales_bias else None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return self.factor.numel() == shape[1 if self.on_input else 0]

    def update(self, base: Tensor) -> Tensor:
        factor = widen(self.factor, base.device)
        if not self.on_input:
            return base * factor[:, None]
        by_channel = base.reshape(base.shape[0], factor.shape[0], -1)  # [out, in, kh·kw]
        return (by_channel * factor[:, None]).reshape(base.shape)

    def rows(self, first: int, last: int) -> Scaled:
        """The same for the output rows [first, last) of the weight."""
        bias = None if self.bias is None else self.bias[first:last]
        factor = self.factor if self.on_input else self.factor[first:last]
        return replace(self, factor=factor, bias=bias)


# --- R − I from what is stored ---


def apply_cayley(q: Tensor) -> Tensor:
    """(I + Q)(I − Q)⁻¹ − I = 2Q(I − Q)⁻¹ of skew matrices, without the cancellation.  [.., n, n]"""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    try:
        turn: Tensor = torch.linalg.solve(eye - q, 2 * q, left=False)
    except RuntimeError:  # I − Q of a skew Q always has an inverse, but not in fp32 where the numbers are huge
        raise Misfit("has numbers too large for fp32") from None
    return turn


def apply_neumann(q: Tensor, terms: int) -> Tensor:
    """PEFT's series for the same, less I: 2Q + 2Q² + … + Qᵏ, the last power once; k = ``terms`` − 1, and 3 at least.

    Two terms are 2Q, one is nothing.
    """
    total, power, last = torch.zeros_like(q), q, min(terms - 1, 1) if terms < 3 else max(terms - 1, 3)
    for k in range(1, last + 1):
        total = total + (power if k == last > 1 else 2 * power)
        power = power @ q
    return total


def read_skew(parts: Parts, word: str) -> Tensor:
    """B − Bᵀ of stored blocks, within the norm that ``alpha`` allows: the constraint is alpha · out.  [.., n, n]"""
    blocks = widen(parts[word])
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise Misfit(f"has {word} of {format_size(parts[word])}, which are no square blocks")
    q = blocks - blocks.transpose(-1, -2)
    out = blocks.shape[-3] * blocks.shape[-1]
    most = float(parts["alpha"].to(torch.float64)) * out if "alpha" in parts else 0.0
    norm = float(q.norm())
    return q * (most / norm) if 0 < most < norm else q


# --- one builder a form ---


def read_rescale(parts: Parts, out: int, word: str = "rescale") -> Tensor | None:
    """fp32 [out, 1], or None."""
    if word not in parts:
        return None
    if out != UNKNOWN and parts[word].numel() != out:
        raise Misfit(f"has a {word} of {format_size(parts[word])} for {out} outputs")
    return widen(parts[word]).reshape(-1, 1)


def build_oft_blocks(parts: Parts) -> Turned | Scaled:
    """kohya's and LyCORIS' OFT (3-D), and LyCORIS' BOFT (4-D: stages first)."""
    q = read_skew(parts, "oft_blocks")
    out = q.shape[-3] * q.shape[-1]
    shape, rescale = (out, UNKNOWN), read_rescale(parts, out)
    if q.dim() == 3:
        return Turned(apply_cayley(q).transpose(-1, -2)[None].contiguous(), None, rescale, False, shape)
    half = q.shape[-1] // 2
    if q.shape[-1] % 2 or out % (2 ** q.shape[0] * half):
        raise Misfit(f"has oft_blocks of {format_size(parts['oft_blocks'])}, which make no butterfly")
    orders = torch.stack([order_lycoris_butterfly(out, 2**i * half) for i in range(q.shape[0])])
    return Turned(apply_cayley(q), orders, rescale, False, shape)


def order_lycoris_butterfly(rows: int, k: int) -> Tensor:
    """LyCORIS' butterfly: row j of each 2k rows is followed by row j + k.  int64 [rows]"""
    return torch.arange(rows).reshape(-1, 2, k).transpose(1, 2).flatten()


def build_oft_diag(parts: Parts) -> Turned | Scaled:
    """LyCORIS' OFT before version 3: R itself, a rescale in it."""
    r = widen(parts["oft_diag"])
    if r.dim() != 3 or r.shape[1] != r.shape[2]:
        raise Misfit(f"has an oft_diag of {format_size(parts['oft_diag'])}, which are no square blocks")
    turns = (r - torch.eye(r.shape[1])).transpose(1, 2)[None].contiguous()
    return Turned(turns, None, None, False, (r.shape[0] * r.shape[1], UNKNOWN))


def build_oft_r(parts: Parts) -> Turned | Scaled:
    """OFT version 2 (PEFT, OneTrainer), on the input: the upper triangles of skew matrices, [blocks, n·(n − 1)/2].

    neumann_terms: of the series in the place of the inverse; 0: none, R is exact, and then of −Q.
    coft: the norm that each block may have.
    """
    upper = widen(parts["oft_R"])
    if upper.dim() != 2:
        raise Misfit(f"has an oft_R of {format_size(parts['oft_R'])} where two dimensions are expected")
    n = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    if n * (n - 1) // 2 != upper.shape[1]:
        raise Misfit(f"has an oft_R of {format_size(parts['oft_R'])}, which are no triangles")
    if "scaled_oft" in parts:  # OneTrainer's
        upper = upper / upper.shape[1] ** 0.5
    row, column = torch.triu_indices(n, n, 1)
    q = upper.new_zeros(upper.shape[0], n, n)
    q[:, row, column] = upper
    q = q - q.transpose(1, 2)
    if "coft" in parts:
        most = float(parts["coft"]) / q.shape[0] ** 0.5
        q = q * (most / q.norm(dim=(1, 2), keepdim=True).clamp_min(most))
    terms = int(parts["neumann_terms"]) if "neumann_terms" in parts else NEUMANN_TERMS
    if not 0 <= terms <= MOST_TERMS:
        raise Misfit(f"is to be a series of {terms} terms, where at most {MOST_TERMS} are expected")
    turns = apply_neumann(q, terms) if terms else apply_cayley(-q)
    columns = UNKNOWN if upper.shape[0] == 1 else upper.shape[0] * n  # one block may stand for all
    return Turned(turns[None], None, None, True, (UNKNOWN, columns))


def build_boft_r(parts: Parts) -> Turned | Scaled:
    """PEFT's BOFT, on the input: blocks [stages, blocks, n, n], and a scale for every output row."""
    blocks = widen(parts["boft_R"])
    if blocks.dim() != 4 or blocks.shape[2] != blocks.shape[3]:
        raise Misfit(f"has a boft_R of {format_size(parts['boft_R'])}, which are no stages of square blocks")
    stages, count, n, _ = blocks.shape
    if stages > 1 and (n % 2 or count % 2 ** (stages - 1)):
        raise Misfit(f"has a boft_R of {format_size(parts['boft_R'])}, which make no butterfly")
    q = 0.5 * (blocks.transpose(2, 3) - blocks)  # −Q
    orders = torch.stack([order_peft_butterfly(count * n, 2**i * n, n // 2) for i in range(stages)]) if stages > 1 else None
    rescale = read_rescale(parts, UNKNOWN, "boft_s")
    out = UNKNOWN if rescale is None else rescale.shape[0]
    return Turned(apply_cayley(q), orders, rescale, True, (out, count * n))


def order_peft_butterfly(rows: int, group: int, half: int) -> Tensor:
    """PEFT's butterfly: in each ``group`` of rows its halves of blocks, those that are even and odd, take turns.

    int64 [rows]
    """
    pieces = torch.arange(rows).reshape(-1, group // half, half)
    even_odd = torch.cat([torch.arange(0, group // half, 2), torch.arange(1, group // half, 2)])
    return pieces[:, torch.argsort(even_odd)].flatten()


def build_ia3(parts: Parts) -> Turned | Scaled:
    """LyCORIS': what is added to 1, on the output unless ``on_input`` is set."""
    if "on_input" not in parts or parts["on_input"].numel() != 1:
        raise Misfit("has a weight but not one on_input")
    return Scaled(parts["weight"].flatten(), bool(parts["on_input"]))


def build_ia3_l(parts: Parts) -> Turned | Scaled:
    """PEFT's: the whole factor, [out, 1] or [1, in]; [1, n, 1, 1] for a convolution, where the configuration says which."""
    factor = widen(parts["ia3_l"])
    if factor.dim() == 2 and 1 in factor.shape:
        on_input = factor.shape[0] == 1 and factor.shape[1] > 1
    elif "on_input" in parts:
        on_input = bool(parts["on_input"])
    else:
        raise Misfit(f"has an ia3_l of {format_size(factor)}, which the adapter_config.json beside the file would explain")
    return Scaled(factor.flatten() - 1, on_input, scales_bias=not on_input)


FORMS: dict[str, Callable[[Parts], Turned | Scaled]] = {  # by the word that a module of each form has
    "oft_blocks": build_oft_blocks, "oft_diag": build_oft_diag, "oft_R": build_oft_r, "boft_R": build_boft_r,
    "weight": build_ia3, "ia3_l": build_ia3_l,
}  # fmt: skip


def build_multiplied(parts: Parts) -> Turned | Scaled:
    """The Delta of one OFT, BOFT or IA3 module.  Raises Misfit."""
    word = next((word for word in FORMS if word in parts), None)
    if word is None:
        raise Misfit(f"has {' and '.join(parts)} but no weights")
    delta = FORMS[word](parts)
    if isinstance(delta, Turned) and not torch.isfinite(delta.turns).all():
        raise Misfit("has numbers too large for fp32")
    return delta
