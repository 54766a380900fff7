"""A 20-step image on a real WebUI: K-LoRA against the two tags already merged, and the price of a step without switch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from tests.live.host import Host
from tests.live.jobs import Model, plain
from tests.live.kinds import A1111, install, missing

REPOSITORY = Path(__file__).resolve().parents[2]


def available() -> bool:
    return not missing(A1111)


def started(folder: Path) -> Host:
    host = install(A1111, folder, {"klora": REPOSITORY})
    host.start(A1111.sdxl.checkpoint)
    return host


def jobs(model: Model, steps: int) -> dict[str, dict]:
    pair = model.full
    tags = f" <lora:{pair.content}:1> <lora:{pair.style}:1>"
    base = plain(steps=steps)
    on = {"enabled": True, "content": pair.content, "style": pair.style}
    # with alpha 0 nothing switches after the first step
    still = {**on, "alpha": 0, "beta": 1e-6}
    return {
        "merged": base | {"prompt": base["prompt"] + tags},
        "klora": base | {"alwayson_scripts": {"K-LoRA": {"args": [on]}}},
        "still": base | {"alwayson_scripts": {"K-LoRA": {"args": [still]}}},
    }


def timed(host: Host, job: dict, runs: int) -> float:
    """Median seconds of ``runs`` equal jobs, after one that settles what the job before left merged."""
    host.run(job)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        host.run(job)
        times.append(time.perf_counter() - start)
    return median(times)


def measure(rounds: int = 3, runs: int = 3) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        host = started(Path(folder))
        try:
            short, long = jobs(A1111.sdxl, 20), jobs(A1111.sdxl, 40)
            table = [
                {
                    "merged": timed(host, short["merged"], runs),
                    "klora": timed(host, short["klora"], runs),
                    "still": timed(host, short["still"], runs),
                    "still long": timed(host, long["still"], runs),
                    "merged long": timed(host, long["merged"], runs),
                }
                for _ in range(rounds)
            ]
        finally:
            host.stop()
    steps = [((r["still long"] - r["still"]) / 20, (r["merged long"] - r["merged"]) / 20) for r in table]
    return {
        "merged": median(r["merged"] for r in table),
        "klora": median(r["klora"] for r in table),
        "ratio": median(r["klora"] / r["merged"] for r in table),
        "step": median(ours / theirs for ours, theirs in steps),
    }
