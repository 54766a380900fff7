"""The live map itself: from the panel's values to what the page draws."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..map.colours import find_palette
from ..map.describe import describe_layers, describe_map
from ..map.layout import Layout, arrange
from ..rule.cache import Library
from ..rule.explain import tell
from ..rule.pairing import Pair
from ..rule.plan import Plan, make_plan
from ..rule.schedule import compute_step_progress, count_whole_steps
from ..settings import Field, name_arguments, read_integer, read_settings, read_values
from .live import Source
from .options import COLOURS
from .routes import MAX_SEED, MAX_STEPS
from .warm import Ready, Waiting, Warmer

AT_ONCE = 0.2  # seconds that a request waits for a pair that is not ready
BY_NOISE = "progress from noise to image, in even parts"


def read_share(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def read_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError
    return value


def read_key(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


WHOLE = f"a whole number from 1 to {MAX_STEPS}"
REQUEST: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field("values", "", "The panel's values, in the order of the settings.", read_list, "a list"),
        Field("steps", "", "The sampler steps of the image.", lambda v: read_integer(v, 1, MAX_STEPS), WHOLE),
        Field("denoising", "", "img2img's denoising strength; 1 for txt2img.", read_share, "a number from 0 to 1"),
        Field("seed", "", "For the method random.", lambda v: read_integer(v, 0, MAX_SEED), "a whole number"),
        Field("known", "", "The layers' key that the page has.", read_key, "text"),
        Field("stop", "", "Whether the page does not want to wait.", bool, "true or false"),
    )
}
USUAL: Mapping[str, Any] = {"values": [], "steps": 20, "denoising": 1.0, "seed": 0, "known": "", "stop": False}


class LiveMap:
    """What the page is answered: a map, or how far a pair is read."""

    def __init__(self, library: Library, source: Source):
        self.library, self.source = library, source
        self.warmer = Warmer(library, source.is_drawing)
        self.layout: tuple[str, Layout] = ("", Layout([], []))  # of the last pair, with its key

    def find_map(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Raises a KLoraError."""
        request = {**USUAL, **read_values(given, REQUEST)}
        settings = read_settings(name_arguments(request["values"]))
        files = self.source.find_files(settings)
        if request["stop"]:
            self.warmer.stop(files, settings)
            return {"stopped": True}
        found = self.warmer.ask(files, settings, AT_ONCE)
        if isinstance(found, Waiting):
            return {"progress": round(found.progress, 3), "drawing": self.source.is_drawing()}
        progress, steps = self.find_progress(request["steps"], request["denoising"])
        plan = make_plan(found.pair, found.scores, settings, steps, request["seed"])
        return self.describe(found, plan, progress, request["known"])

    def describe(self, ready: Ready, plan: Plan, progress: list[float], known: str) -> dict[str, Any]:
        if by_noise := plan.settings.progress == "noise":  # which the sampler's schedule makes of the steps, in a job
            progress = [t / len(progress) for t in range(len(progress))]
        table = plan.over(progress)
        key, layout = self.find_layout(ready.pair, plan)
        colours = find_palette(self.source.get_option(COLOURS, ""))
        return {
            **describe_map(plan, table, colours, layout),
            "axis": BY_NOISE if by_noise else "",
            "sentence": tell(plan, table, ready.energies, ready.closeness),
            "notes": [*ready.pair.content.notes, *ready.pair.style.notes, *plan.notes],
            "key": key,
            "layers": None if known == key else describe_layers(plan, layout),
        }

    def find_layout(self, pair: Pair, plan: Plan) -> tuple[str, Layout]:
        """The order of the pair's rows, and a key for it.  Kept, as it takes longer than all the rest of an answer."""
        key = hashlib.sha256(repr((pair.content.digest, pair.style.digest)).encode()).hexdigest()[:16]
        known = self.layout
        if known[0] != key:
            known = self.layout = key, arrange([unit.name for unit in plan.units])
        return known

    def find_progress(self, steps: int, denoising: float) -> tuple[list[float], int]:
        """The progress at each step of a pass, and how many steps a whole schedule would have."""
        if denoising >= 1:
            return [t / steps for t in range(steps)], steps
        fixed = bool(self.source.get_option("img2img_fix_steps", False))
        calls = steps if fixed else int(min(denoising, 0.999) * steps) + 1  # as the WebUI counts them
        start = 1 - denoising
        return [compute_step_progress(t, calls, start) for t in range(calls)], count_whole_steps(calls, start)
