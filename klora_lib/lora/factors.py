"""Small matrices made of a module's factors, and the directions in which it reads its input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..devices import move
from .deltas import Delta, Device, count_columns
from .lycoris import Loha, Lokr, multiply_factors

SAFE = 2.0**20  # numbers up to this, and down to its inverse, can be squared and summed in fp32
INDEPENDENT = 1e-4  # of its norm: what a row must have that the rows before it have not
NEGLIGIBLE = 1e-6  # of the largest: a singular value below this is rounding


def normalise(tensor: Tensor, device: Device = None) -> tuple[Tensor, float]:
    """(x, size): fp32 on ``device`` with tensor = size·x, where squares of x neither overflow nor vanish.

    ``size`` is a power of two, so nothing is rounded.
    """
    x = move(tensor, device, torch.float32)
    most = float(x.abs().max()) if x.numel() else 0.0
    if most == 0 or 1 / SAFE <= most <= SAFE or not math.isfinite(most):
        return x, 1.0
    exponent = math.frexp(most)[1]
    half = exponent // 2  # at once it may be too much for fp32, which has no 2^149
    return x / math.ldexp(1, half) / math.ldexp(1, exponent - half), math.ldexp(1, exponent)


def compute_gram(rows: Tensor, others: Tensor | None = None) -> Tensor:
    """Inner products of ``rows`` with each other (or with ``others``), in host memory as fp64: few are left of many."""
    return (rows @ (rows if others is None else others).T).cpu().double()


def find_row_space(up: Tensor, down: Tensor) -> Tensor:
    """Q: orthonormal directions that span the rows of up @ down.  fp32 [columns, k], k the rank of the product.

    Args: up: [out, rank].  down: [rank, columns].  In host memory, as not every device can decompose a matrix.
    Where ``up`` has full column rank these are the rows of ``down``, and a QR does; else the right singular vectors of the
    product, of which only R, small, has to be decomposed.
    """
    up, down = normalise(up, "cpu")[0], normalise(down, "cpu")[0]
    products = compute_gram(up.T)
    used = products.diagonal() > 0
    if not used.all():
        up, down, products = up[:, used], down[used], products[used][:, used]
    if has_full_rank(products):
        q: Tensor
        q, r = torch.linalg.qr(down.T)  # [columns, rank], [rank, rank]
        if r.shape[0] == r.shape[1] and bool((r.diagonal().abs() > INDEPENDENT * r.norm(dim=0)).all()):
            return q
    if not up.numel():
        return down.new_zeros(down.shape[1], 0)
    vectors, sizes = find_singular_of_product(up, down)
    return vectors[:, sizes > NEGLIGIBLE * sizes.max()].float()


def find_singular_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """(right singular vectors [columns, n], singular values [n]) of up @ down, fp64: those of up @ Rᵀ, downᵀ = Q R."""
    q, r = torch.linalg.qr(down.double().T)
    _, sizes, right = torch.linalg.svd(up.double() @ r.T, full_matrices=False)
    return q @ right.T, sizes


def has_full_rank(products: Tensor) -> bool:
    """Whether none of the vectors with these inner products is a sum of others, as Cholesky's pivots of their cosines say.

    False in doubt, and where there are none.
    """
    norms = products.diagonal().sqrt()
    root, failed = torch.linalg.cholesky_ex(products / torch.outer(norms, norms))
    return bool(products.numel()) and not int(failed) and float(root.diagonal().min()) > INDEPENDENT**0.5


def find_leading(delta: Delta, share: float, device: Device = None) -> Tensor:
    """The fewest right singular vectors of ΔW that hold ``share`` of its energy.  fp32 [columns, k], in host memory.

    A Kronecker product's are the products of its factors'.  A Hadamard product of two products of ranks r is one of rank r².
    Of anything else, the smaller of ΔWᵀΔW and ΔWΔWᵀ is decomposed: a third of a second where that has 1280 rows.
    """
    if isinstance(delta, Lokr):
        (one, sizes_1), (two, sizes_2) = (find_singular(multiply_factors(w, device)) for w in (delta.w1, delta.w2))
        sizes = torch.outer(sizes_1, sizes_2).flatten()
        chosen = pick_strongest(sizes, share)
        first, second = one[:, chosen // len(sizes_2)], two[:, chosen % len(sizes_2)]
        return (first[:, None] * second[None]).reshape(len(one) * len(two), len(chosen)).float()
    if isinstance(delta, Loha) and 2 * delta.down1.shape[0] * delta.down2.shape[0] < min(flatten_shape(delta)):
        vectors, sizes = find_singular_of_product(*make_one_product(delta))
    else:
        vectors, sizes = find_singular(delta.dense(device))
    return vectors[:, pick_strongest(sizes, share)].float()


def flatten_shape(delta: Delta) -> tuple[int, int]:
    return delta.shape[0], count_columns(delta.shape)


def make_one_product(delta: Loha) -> tuple[Tensor, Tensor]:
    """(up [out, r²], down [r², columns]) of (up1 @ down1) * (up2 @ down2), in host memory; without its scale."""
    up1, down1, up2, down2 = (normalise(t, "cpu")[0] for t in (delta.up1, delta.down1, delta.up2, delta.down2))
    return (up1[:, :, None] * up2[:, None]).flatten(1), (down1[:, None] * down2[None]).flatten(0, 1)


def find_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(right singular vectors [columns, n], singular values [n]), fp32 in host memory; in no particular order."""
    x = normalise(matrix)[0]
    if x.shape[1] <= x.shape[0]:
        squares, vectors = torch.linalg.eigh(compute_gram(x.T).float())
        return vectors, squares.clamp_min(0).sqrt()
    squares, vectors = torch.linalg.eigh(compute_gram(x).float())
    sizes = squares.clamp_min(0).sqrt()
    kept = sizes > NEGLIGIBLE**0.5 * sizes.max()
    return x.T.cpu() @ vectors[:, kept] / sizes[kept], sizes[kept]


def pick_strongest(sizes: Tensor, share: float) -> Tensor:
    """Indices of the fewest ``sizes`` whose squares make up ``share`` of all."""
    order = sizes.argsort(descending=True)
    held = sizes[order].square().cumsum(0)
    if not len(held) or not held[-1]:  # a layer of zeros has no directions
        return order[:0]
    return order[: int((held < share * held[-1]).sum()) + 1]
