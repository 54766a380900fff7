"""What each method costs: planning a full-size SDXL pair, and an image of the tiny SDXL on a real WebUI."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from klora_lib.rule.cache import Library
from klora_lib.rule.plan import make_plan
from klora_lib.settings import METHODS, Settings
from tests.live.jobs import TITLE

from .image import A1111, available, jobs, started, timed
from .plan import CPU, random_pair, seconds


def measure_plans(runs: int = 3) -> dict[str, float]:
    """Method → median seconds until it is known what acts, nothing of the pair being kept."""
    pair = random_pair()

    def plan(settings: Settings) -> None:
        found = make_plan(pair, Library().measure(pair, settings, CPU), settings, 20)
        found.table(20)
        found.acting((1.0, 1.0))

    each = {name: Settings(method=name) for name in METHODS}
    rows = [{name: seconds(lambda s=settings: plan(s)) for name, settings in each.items()} for _ in range(runs)]
    return {name: median(row[name] for row in rows) for name in METHODS}


def measure_images(rounds: int = 3) -> dict[str, float]:
    """Method → seconds of a 20-step image, divided by those with the two tags already merged; medians of ratios."""
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        host = started(Path(folder))
        try:
            job = jobs(A1111.sdxl, 20)
            on = job["klora"]["alwayson_scripts"][TITLE]["args"][0]
            found: dict[str, list[float]] = {name: [] for name in METHODS}
            for _ in range(rounds):
                merged = timed(host, job["merged"], 2)
                for name in METHODS:
                    mine = job["klora"] | {"alwayson_scripts": {TITLE: {"args": [on | {"method": name}]}}}
                    found[name].append(timed(host, mine, 1) / merged)
        finally:
            host.stop()
    return {name: median(ratios) for name, ratios in found.items()}


def make_rows() -> list[str]:
    plans = measure_plans()
    images = measure_images() if available() else {}
    lines = ["| method | planning a full-size SDXL pair | a 20-step image, against both tags merged |", "|---|---|---|"]
    for name in METHODS:
        image = f"{images[name]:.2f}×" if images else "not measured"
        lines.append(f"| {name} | {plans[name]:.2f} s | {image} |")
    return lines
