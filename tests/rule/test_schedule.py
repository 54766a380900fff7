"""Theorems: S and S* are the paper's lines; progress stays in [0, 1) whatever a sampler counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klora_lib.rule.schedule import BELOW_ONE, compute_noise_progress, compute_step_progress, scale_s, scale_s_star

alphas = st.floats(1e-3, 1e3)
betas = st.floats(0, 1e3)
starts = st.floats(0, 1)


def progress(steps: int) -> torch.Tensor:
    return torch.arange(steps, dtype=torch.float64) / steps


def test_s_of_the_paper() -> None:
    assert scale_s(progress(3), 1.5, 0.5).tolist() == [0.5, 1.0, 1.5]


def test_s_star_of_the_authors() -> None:
    """It opens at 1.275 and grows to 1.5, from where it goes on at 0: after 0.15 of the steps."""
    s = scale_s_star(progress(8), 1.5, 1.275)
    assert s.tolist() == pytest.approx([1.275, 1.4625, 0.15, 0.3375, 0.525, 0.7125, 0.9, 1.0875])


@given(alpha=alphas, beta=betas, steps=st.integers(1, 200))
def test_s_begins_at_beta_and_never_falls(alpha: float, beta: float, steps: int) -> None:
    s = scale_s(progress(steps), alpha, beta)
    assert s[0] == beta
    assert (s.diff() >= 0).all()
    assert s[-1] <= alpha + beta


@given(alpha=alphas, beta=betas, steps=st.integers(1, 200))
def test_s_star_is_s_less_whole_alphas(alpha: float, beta: float, steps: int) -> None:
    s, star = scale_s(progress(steps), alpha, beta), scale_s_star(progress(steps), alpha, beta)
    assert (star >= 0).all() and (star < alpha).all()
    turns = (s - star) / alpha
    assert torch.allclose(turns, turns.round(), atol=1e-6)


@given(total=st.integers(1, 500), start=starts)
def test_steps_go_forward_within_the_unit_interval(total: int, start: float) -> None:
    places = [compute_step_progress(t, total, start) for t in range(total)]
    assert places[0] == min(start, BELOW_ONE)
    assert places == sorted(places)
    assert all(0 <= place < 1 for place in places)


@given(total=st.integers(1, 500))
def test_txt2img_is_t_by_T_exactly(total: int) -> None:
    assert [compute_step_progress(t, total) for t in range(total)] == progress(total).tolist()


@given(total=st.integers(1, 500), past=st.integers(0, 1000), start=starts)
def test_calls_past_the_announced_number_count_as_the_last(total: int, past: int, start: float) -> None:
    assert compute_step_progress(total + past, total, start) == compute_step_progress(total - 1, total, start)


@given(start=st.floats(0, 0.9), share=st.integers(0, 9))
def test_img2img_walks_the_rest_of_the_way(start: float, share: int) -> None:
    assert compute_step_progress(share, 10, start) == pytest.approx(start + (1 - start) * share / 10)


@given(timestep=st.floats(-10, 2000), timesteps=st.integers(2, 1000))
def test_noise_gives_progress_within_the_unit_interval(timestep: float, timesteps: int) -> None:
    assert 0 <= compute_noise_progress(timestep, timesteps) < 1


def test_noise_runs_from_the_last_timestep_to_the_first() -> None:
    assert compute_noise_progress(999, 1000) == 0
    assert compute_noise_progress(0, 1000) == BELOW_ONE
    places = [compute_noise_progress(t, 1000) for t in range(999, -1, -1)]
    assert places == sorted(places)
    assert compute_noise_progress(499.5, 1000) == pytest.approx(0.5)
