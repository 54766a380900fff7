"""Theorems of a job's map: it is there when asked for, and shows what acted."""

from __future__ import annotations

from klora_lib.map import draw_plan
from klora_lib.map.told import tell_plan

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
