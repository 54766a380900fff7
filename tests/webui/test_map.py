"""Theorems of a job's map: it is there when asked for, and shows what acted."""

from __future__ import annotations

import pytest
import torch

from klora_lib.map import draw_plan
from klora_lib.map.told import tell_plan
from klora_lib.webui.maps import name_axis

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from .jobs import job, plan_of


def test_a_job_shows_the_plan_it_ran(host: FakeHost) -> None:
    p = job(host, {"show_map": True}, steps=6)
    processed = process_images(p)
    plan = plan_of(host, p, 6)
    wanted = draw_plan(plan.table(6), *tell_plan(plan, "subject", "style"))
    assert processed.images[-1].tobytes() == wanted.tobytes()
    assert len(processed.infotexts) == len(processed.images)


def test_only_a_job_that_asks_for_the_map_has_one(host: FakeHost) -> None:
    assert len(process_images(job(host, {"show_map": True}, n_iter=2)).images) == 3
    assert len(process_images(job(host)).images) == 1


@pytest.mark.parametrize(
    ("fields", "settings", "axis"),
    [
        ({}, {}, "sampling step"),
        ({"source": torch.zeros(1, 4, 4, 4), "denoising_strength": 0.5}, {}, "sampling step"),
        ({"sampler_name": "Heun"}, {}, "denoiser call"),
        ({}, {"progress": "noise"}, "denoiser call, at the noise it had"),
    ],
)
def test_a_column_is_named_by_what_it_is(host: FakeHost, fields: dict, settings: dict, axis: str) -> None:
    p = job(host, {"show_map": True, **settings}, steps=6, **fields)
    process_images(p)
    (one,) = p.klora_job.passes  # type: ignore[attr-defined]
    assert name_axis(one, p.klora_job.by_noise) == axis  # type: ignore[attr-defined]
