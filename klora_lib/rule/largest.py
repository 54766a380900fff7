"""The k largest of many non-negative numbers that come in parts, and the sum of these k, without ordering all of them.

Numbers are looked at in blocks.  The largest number of each block costs one pass, and most blocks have nothing that counts:
only the others are searched.  A block is not a row of neighbours but every (n/B)-th number: so the pass goes over whole
vectors, and where a matrix has a few large rows or columns, these are in different blocks.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.floating]
LONGEST = 64  # numbers in a block
SAMPLE = 4096  # blocks of which a bound is taken


class Largest(Protocol):
    """Keeps the k largest numbers of all parts so far."""

    def add(self, part: Tensor) -> None:
        """``part``: 1-D, contiguous, non-negative.  It may be overwritten afterwards."""

    def sum(self) -> Tensor | float: ...


def keep_largest(k: int, device: torch.device) -> Largest:
    """For parts on ``device``.  k: at least 1."""
    return LargestInHost(k) if device.type == "cpu" else LargestOnDevice(k)


def sum_topk(x: Tensor, k: int) -> Tensor | float:
    """Sum of the ``k`` largest of the non-negative ``x``, exactly; of all if there are fewer."""
    largest = keep_largest(k, x.device)
    largest.add(x.reshape(-1))
    return largest.sum()


def choose_block(n: int, k: int) -> int:
    """How many numbers a block has, of n numbers among which k are wanted.

    Balances the search among n/B blocks with that among about k·B numbers (measured: a number of the latter costs six times
    as much).
    """
    return max(1, min(LONGEST, math.isqrt(n // (6 * k))))


def cut_blocks(part: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """([size, n // size], the rest of fewer than ``size`` numbers): the columns are the blocks; views."""
    columns = part.numel() // size
    return part[: size * columns].view(size, columns), part[size * columns :]


class LargestInHost:
    """In host memory, by numpy, whose searches take a fraction of the time that torch's take on a CPU.

    least: the k-th largest of the parts so far; what is below it does not count.  0 while there were fewer than k.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept: Numbers = np.empty(0, np.float32)
        self.least = 0.0

    def add(self, part: Tensor) -> None:
        size = choose_block(part.numel(), self.k)
        blocks, rest = cut_blocks(part, size)
        most = blocks.amax(0).numpy() if size > 1 else None
        least = self.least
        if most is not None and not least:
            least = guess_least(most, self.k)
        found = take_from(least, blocks.numpy(), most, rest.numpy())
        if not self.least and least and len(found) < self.k:  # the guess was too high for this part
            found = take_from(0, blocks.numpy(), most, rest.numpy())
        self.kept = np.concatenate([self.kept, found])
        if len(self.kept) >= self.k:
            first = len(self.kept) - self.k
            self.kept = np.partition(self.kept, first)[first:]
            self.least = float(self.kept[0])

    def sum(self) -> float:
        return float(self.kept.sum(dtype=np.float64))


def guess_least(most: Numbers, k: int) -> float:
    """A number of which at least ``k`` blocks have one that is as large, in all likelihood; as large as is safe.

    most: the largest number of each block.
    """
    sample = most[:: max(1, len(most) // SAMPLE)]
    share = k * len(sample) / len(most)
    wanted = math.ceil(1.05 * share + 4 * math.sqrt(share))  # its deviation is at most √share
    first = len(sample) - wanted
    return float(np.partition(sample, first)[first]) if first >= 0 else 0.0


def take_from(least: float, blocks: Numbers, most: Numbers | None, rest: Numbers) -> Numbers:
    """Those numbers that are at least ``least``, except zeros."""
    if most is not None:
        blocks = blocks.take(find_at_least(most, least), axis=1)
    found = [x[find_at_least(x, least)] for x in (blocks.reshape(-1), rest)]
    return np.concatenate(found)


def find_at_least(x: Numbers, least: float) -> NDArray[np.intp]:
    """Indices of the numbers of ``x`` that are at least ``least``, except zeros."""
    return np.flatnonzero(x >= least if least > 0 else x > 0)


class LargestOnDevice:
    """On a GPU: shapes depend on n and k alone, so the device is never waited for."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept: Tensor | None = None

    def add(self, part: Tensor) -> None:
        size = choose_block(part.numel(), self.k)
        blocks, rest = cut_blocks(part, size)
        if size > 1 and blocks.shape[1] > self.k:
            best = torch.topk(blocks.amax(0), self.k, sorted=False).indices
            part = torch.cat([blocks[:, best].reshape(-1), rest])
        if self.kept is not None:
            part = torch.cat([self.kept, part])
        self.kept = torch.topk(part, min(self.k, part.numel()), sorted=False).values

    def sum(self) -> Tensor:
        assert self.kept is not None
        return self.kept.sum()
