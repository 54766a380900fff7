"""What each method costs: planning a full-size SDXL pair, and an image of the tiny SDXL on a real WebUI.

Seconds are the processor's, in one thread, so that other work on the machine changes little.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import torch

from klora_lib.rule.cache import Library
from klora_lib.rule.plan import make_plan
from klora_lib.settings import METHODS, Settings
from tests.live.host import Host
from tests.live.jobs import TITLE

from .image import A1111, available, jobs, started
from .plan import CPU, random_pair


def measure_plans(runs: int = 2) -> dict[str, float]:
    """Method → median seconds until it is known what acts, nothing of the pair being kept."""
    pair = random_pair()

    def plan(settings: Settings) -> float:
        began = time.process_time()
        found = make_plan(pair, Library().measure(pair, settings, CPU), settings, 20)
        found.table(20)
        found.acting((1.0, 1.0))
        return time.process_time() - began

    torch.set_num_threads(1)
    rows = [{name: plan(Settings(method=name)) for name in METHODS} for _ in range(runs)]
    return {name: median(row[name] for row in rows) for name in METHODS}


def count_seconds(host: Host, job: dict) -> float:
    """The processor's seconds for a job, after one that settles what the job before left merged."""
    assert host.process is not None
    host.run(job)
    process = psutil.Process(host.process.pid)
    before = process.cpu_times()
    host.run(job)
    after = process.cpu_times()
    return (after.user + after.system) - (before.user + before.system)


def measure_images(rounds: int = 2) -> dict[str, float]:
    """Method → seconds of a 20-step image, divided by those with the two tags already merged; medians of ratios."""
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        host = started(Path(folder))
        try:
            job = jobs(A1111.sdxl, 20)
            on = job["klora"]["alwayson_scripts"][TITLE]["args"][0]
            found: dict[str, list[float]] = {name: [] for name in METHODS}
            for _ in range(rounds):
                merged = count_seconds(host, job["merged"])
                for name in METHODS:
                    mine = job["klora"] | {"alwayson_scripts": {TITLE: {"args": [on | {"method": name}]}}}
                    found[name].append(count_seconds(host, mine) / merged)
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
