"""What the cost grows with: ranks, layers, steps, resolution, batch.  A table, and the same as charts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

import torch

from klora_lib.rule.pairing import Pair
from klora_lib.rule.scoring import score_units

from .bypass import open_session
from .chart import Panel, Points, draw_charts
from .pairs import list_attention_shapes, make_factors, make_sdxl_pair, write_pair
from .sampler import Sampler
from .sampling import STEPS, Scene
from .scoring import make_products
from .tables import make_table
from .turns import measure_seconds, take_turns

RANKS = (4, 16, 32, 64, 128)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the layers
PASSES = (5, 10, 20, 30, 60)  # steps
SIZES, BATCHES = (16, 24, 32, 48), (1, 2, 4)  # latent pixels a side, images


def take_part(pair: Pair, count: int) -> Pair:
    """The same pair with ``count`` of its layers, at equal distances so that all kinds are in it."""
    n = len(pair.units)
    return Pair(pair.content, pair.style, tuple(pair.units[i * n // count] for i in range(count)), ())


def measure_scoring(pair: Pair, device: torch.device) -> tuple[float, float]:
    """Medians of (scoring, the bare products), in turns."""
    scratch = torch.empty(max(unit.elements for unit in pair.units), device=device)
    candidates = {
        "klora": lambda: score_units(pair.units, "auto", device),
        "bare": lambda: make_products(pair, scratch),
    }
    times = take_turns(candidates, 2, device)
    return median(times["klora"]), median(times["bare"])


def measure_pass(scene: Scene, steps: int) -> tuple[float, int]:
    """(seconds of all switches of a pass and of giving the model back, their number), without a forward."""
    session = open_session(scene, "merge")

    def act() -> None:
        for t in range(steps):
            session.advance(t / steps)
        session.close()

    return measure_seconds(act, scene.device), session.switches


def measure_forward(scene: Scene, size: int, batch: int) -> float:
    sampler = Sampler(scene.unet, scene.config, size, batch)
    sampler(stop=1)
    return min(measure_seconds(lambda: sampler(stop=1), scene.device) for _ in range(2))


def measure(device: torch.device, quick: bool = False, picture: Path | None = None) -> list[str]:
    """The table; the charts are written to ``picture``."""
    ranks, sizes, layers_most = (RANKS[:2], SIZES[:2], 40) if quick else (RANKS, SIZES, 560)
    whole = make_sdxl_pair((32, 64))
    scored = {rank: measure_scoring(take_part(make_sdxl_pair((rank, rank)), layers_most), device) for rank in ranks}
    parts = [take_part(whole, round(share * layers_most)) for share in SHARES]
    layers = {len(part.units): measure_scoring(part, device) for part in parts}
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        measure_pass(scene, 1)
        passes = {steps: measure_pass(scene, steps) for steps in PASSES}
        forwards = {(size, batch): measure_forward(scene, size, batch) for size in sizes for batch in BATCHES[:1]}
        forwards |= {(SIZES[0], batch): measure_forward(scene, SIZES[0], batch) for batch in BATCHES[1:]}
        by_rank = {rank: measure_rank(scene, rank, Path(folder)) for rank in ranks}
    switching = passes[STEPS][0]
    shares = {key: switching / (STEPS * seconds) for key, seconds in forwards.items()}
    rows = [[f"ranks {r}/{r}", "scoring", f"{s:.2f}", f"the products alone {b:.2f}"] for r, (s, b) in scored.items()]
    rows += [[f"{n} layers", "scoring (32/64)", f"{s:.2f}", f"the products alone {b:.2f}"] for n, (s, b) in layers.items()]
    rows += [[f"ranks {r}/{r}", f"switches of {STEPS} steps", f"{s:.2f}", f"{n} switches"] for r, (s, n) in by_rank.items()]
    rows += [[f"{t} steps", "all switches (32/64)", f"{s:.2f}", f"{n} switches"] for t, (s, n) in passes.items()]
    rows += [
        [f"{8 * size}², {batch} a batch", "one forward", f"{seconds:.2f}",
         f"switches are {100 * shares[size, batch]:.1f} % of {STEPS} steps"]
        for (size, batch), seconds in forwards.items()
    ]  # fmt: skip
    if picture is not None:
        picture.write_text(draw_charts(make_panels(scored, layers, passes, by_rank, shares)))
    return make_table(("at", "what", "seconds", "beside it"), rows)


def measure_rank(scene: Scene, rank: int, folder: Path) -> tuple[float, int]:
    """``measure_pass`` of ``STEPS`` with a pair of this rank."""
    shapes = list_attention_shapes(scene.unet)
    kept, there = scene.files, folder / str(rank)
    there.mkdir()
    scene.files = write_pair(there, (make_factors(shapes, rank, 1), make_factors(shapes, rank, 2)))
    try:
        return measure_pass(scene, STEPS)
    finally:
        scene.files = kept


def make_panels(
    scored: dict[int, tuple[float, float]], layers: dict[int, tuple[float, float]], passes: dict[int, tuple[float, int]],
    by_rank: dict[int, tuple[float, int]], shares: dict[tuple[int, int], float],
) -> list[Panel]:  # fmt: skip
    def take(found: dict[int, tuple[float, float]] | dict[int, tuple[float, int]], i: int) -> Points:
        return [(key, values[i]) for key, values in found.items()]

    by_size = [(8 * size, 100 * share) for (size, batch), share in shares.items() if batch == 1]
    by_batch = [(batch, 100 * share) for (size, batch), share in shares.items() if size == SIZES[0]]
    costs = {"K-LoRA": 0, "products alone": 1}
    return [
        Panel("Scoring a pair: ranks", "rank of both", "seconds", {name: take(scored, i) for name, i in costs.items()}),
        Panel("Scoring a pair: layers", "layers", "seconds", {name: take(layers, i) for name, i in costs.items()}),
        Panel("All switches of a pass: steps", "steps", "seconds", {"engine merge": take(passes, 0)}),
        Panel("All switches of 20 steps: ranks", "rank of both", "seconds", {"engine merge": take(by_rank, 0)}),
        Panel("Switches' share of 20 steps", "pixels a side", "% of the image", {"one image": by_size}),
        Panel("Switches' share of 20 steps", "images a batch", "% of the image", {"128²": by_batch}),
    ]
