"""Theorems: the row space of a product is what a dense SVD says, however the factors look; leading directions likewise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from klora_lib.lora.factors import find_leading, find_row_space, normalise
from klora_lib.lora.lycoris import Loha

from ..engine.cases import DENSE, rand


def dense_projector(matrix: Tensor) -> Tensor:
    """QQᵀ of the rows of ``matrix``, fp64."""
    _, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    q = right[sizes > 1e-6 * sizes.max()].T
    return q @ q.T


UP, DOWN = rand(20, 4, seed=1), rand(4, 12, seed=2)
TWICE = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])  # its last two rows are the same
FACTORS = {
    "usual": (UP, DOWN),
    "a column of up is zero": (UP * torch.tensor([1.0, 0, 1, 1]), DOWN),
    "two columns of up are one": (UP @ TWICE.T[:, [0, 1, 2, 2]], DOWN),
    "two columns of up are nearly one": (torch.cat([UP[:, :3], UP[:, 2:3] * (1 + 1e-7)], 1), DOWN),
    "a row of down is zero": (UP, DOWN * torch.tensor([[1.0], [0], [1], [1]])),
    "two rows of down are one": (UP, TWICE @ DOWN),
    "up is zero": (UP * 0, DOWN),
    "more rank than columns": (rand(20, 15, seed=3), rand(15, 12, seed=4)),
    "more rank than rows": (rand(3, 8, seed=5), rand(8, 12, seed=6)),
    "fp16": (UP.half(), DOWN.half()),
    "huge and tiny": (UP * 1e30, DOWN * 1e-30),
    "columns of very different size": (UP * torch.tensor([1.0, 1e-5, 1e5, 1]), DOWN),
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_directions_span_the_rows_of_the_product(name: str) -> None:
    up, down = FACTORS[name]
    q = find_row_space(up, down)
    product = up.double() @ down.double()
    assert torch.allclose(q.T @ q, torch.eye(q.shape[1]), atol=1e-5)
    left = product - product @ q.double() @ q.double().T
    assert float(left.norm()) <= 1e-5 * float(product.norm())
    if name == "columns of very different size":  # a dense SVD does not see the weakest
        assert q.shape[1] == 4
    else:
        wanted = dense_projector(product) if product.any() else torch.zeros_like(q @ q.T).double()
        assert torch.allclose((q @ q.T).double(), wanted, atol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(8, 6), (8, 24), (6, 4, 3, 3)])
@pytest.mark.parametrize("kind", ["full", "loha", "lokr"])
def test_leading_directions_are_the_fewest_that_hold_the_share(kind: str, shape: tuple[int, ...], share: float) -> None:
    delta, step = DENSE[kind](shape, 3)
    matrix = step(torch.zeros(1, dtype=torch.float64))
    q = find_leading(delta, share).double()
    sizes = torch.linalg.svdvals(matrix)
    held = sizes.square().cumsum(0) / sizes.square().sum()
    assert q.shape == (matrix.shape[1], int((held < share).sum()) + 1)
    assert torch.allclose(q.T @ q, torch.eye(q.shape[1], dtype=torch.float64), atol=1e-4)
    assert float((matrix @ q).square().sum() / matrix.square().sum()) == pytest.approx(float(held[q.shape[1] - 1]), abs=1e-5)


def test_a_loha_of_small_rank_is_decomposed_by_its_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 of 24 rows and 30 columns: the product has rank 4, and no ΔW is formed."""
    up1, down1, up2, down2 = (rand(*s, seed=i) for i, s in enumerate([(24, 2), (2, 30)] * 2))
    delta = Loha(up1, down1, up2, down2, 0.5, (24, 30))
    matrix = 0.5 * (up1.double() @ down1.double()) * (up2.double() @ down2.double())
    monkeypatch.setattr(Loha, "dense", lambda *_: pytest.fail("it was formed"))
    q = find_leading(delta, 0.9).double()
    held = torch.linalg.svdvals(matrix).square().cumsum(0) / matrix.square().sum()
    assert q.shape == (30, int((held < 0.9).sum()) + 1) and q.shape[1] < 5
    assert float((matrix @ q).square().sum() / matrix.square().sum()) == pytest.approx(float(held[q.shape[1] - 1]), abs=1e-5)


def test_a_module_that_is_zero_leads_nowhere_in_particular() -> None:
    zero = Loha(UP * 0, DOWN, UP, DOWN, 1.0, (20, 12))
    assert bool(find_leading(zero, 0.9).isfinite().all())


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-7, 1.0, 1e7, 1e30, 3e38])
def test_normal_numbers_are_the_same_numbers(size: float) -> None:
    tensor = torch.tensor([[size, -size / 2], [0.0, size / 4]])
    x, factor = normalise(tensor)
    assert torch.equal((x.double() * factor).float(), tensor)
    assert 1e-7 < float(x.abs().max()) < 1e7
