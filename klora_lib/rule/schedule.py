"""The scaling factors of the rule (paper, section 3.4 and its supplement): S(t) and S*(t)."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_s(progress: Tensor, alpha: float, beta: float) -> Tensor:
    """S = α·t/T + β.  ``progress``: t/T in [0, 1), float64; grows, so a layer turns from content to style once."""
    return alpha * progress + beta


def scale_s_star(progress: Tensor, alpha: float, beta: float) -> Tensor:
    """S* = (α·t/T + β) mod α, α > 0: opens with style when β is near α."""
    return torch.remainder(scale_s(progress, alpha, beta), alpha)


def compute_step_progress(t: int, total: int, start: float = 0.0) -> float:
    """Progress of model call ``t`` of ``total``, from ``start`` (1 − denoising strength; 0 for txt2img), below 1.

    Calls past the plan (UniPC and PLMS make one more than they announce) count as the last one.
    """
    t = min(t, total - 1)
    return min(start + (1.0 - start) * (t / total), BELOW_ONE)


def count_whole_steps(steps: int, start: float) -> int:
    """How many steps a full schedule would have of which a pass makes the last ``steps``, beginning at ``start``.

    Every step of a pass that begins late is then a step of its own for the methods that count steps.
    """
    return max(1, round(steps / (1.0 - start))) if start < 1 else steps


def compute_noise_progress(timestep: float, timesteps: float) -> float:
    """Progress by noise: 1 − timestep/(N−1) for a training schedule of N ``timesteps``, within [0, 1)."""
    return min(max(1.0 - timestep / (timesteps - 1), 0.0), BELOW_ONE)


BELOW_ONE = 1.0 - 2.0**-53
