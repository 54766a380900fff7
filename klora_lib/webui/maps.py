"""``show_map``: the maps of a job's passes, after its images and saved as the WebUI saves its grids."""

from __future__ import annotations

from typing import Any

from ..engine.sampling import SamplingPass
from ..map import draw_plan
from ..map.colours import find_palette
from ..map.told import tell_plan
from ..rule.schedule import count_whole_steps
from .job import Job
from .options import COLOURS, read_option

NAME = "klora-map"  # of the file


def append_maps(job: Job, p: Any, processed: Any) -> None:
    """One map of the first pass, and one of the first hires pass if there was any.  ``processed``: the host's result."""
    colours = find_palette(read_option(COLOURS, ""))
    infotext = processed.infotexts[0] if processed.infotexts else ""
    for title, each in find_passes(job):
        plan = each.plan
        picture = draw_plan(each.table(), *tell_plan(plan, title=title), colours, name_axis(each, job.by_noise))
        processed.images.append(picture)
        processed.infotexts.append(infotext)
        job.host.save_grid(p, picture, NAME, infotext)


def find_passes(job: Job) -> list[tuple[str, SamplingPass]]:
    """With how the text below begins.  A batch's other images have the same maps, up to the seed of the method random."""
    drawn = [each for each in job.passes if each.progress]
    first = [("", each) for each in drawn if not each.is_hires][:1]
    return first + [("Hires pass. ", each) for each in drawn if each.is_hires][:1]


def name_axis(one: SamplingPass, by_noise: bool) -> str:
    """What a column is: samplers of a higher order call the denoiser more than once a step."""
    if by_noise:
        return "denoiser call, at the noise it had"
    is_step = count_whole_steps(len(one.progress), one.start) == one.plan.facts.steps
    return "sampling step" if is_step else "denoiser call"
