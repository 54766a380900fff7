"""An image of a full-size SDXL UNet: K-LoRA's two engines against both LoRAs merged plainly, and against others' ways."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klora_lib.diffusers import Library, klora
from klora_lib.errors import format_count

from . import rivals
from .pairs import list_attention_shapes, make_factors, write_pair
from .sampler import FULL, NARROW, Sampler, choose_type, make_unet
from .tables import make_table
from .turns import Times, find_ratios, format_spread, measure_seconds, read_clock, take_turns

RANKS = (32, 64)
STEPS = 20
ROUNDS = 2
REMERGED = 3  # steps of the rival that merges everything anew
PARTS_HEAD = (
    "engine", "switches", "first step (switches)", "a switch later", "switches a step", "a step without", "giving back",
    "share of the image",
)  # fmt: skip
NEAR = 3  # times what rounding alone changes


def name_type(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


class Parts(NamedTuple):
    """Of one image: (switches, seconds) before the forward of each step, and the seconds of giving the model back."""

    steps: list[tuple[int, float]]
    close: float


class Scene:
    """The model, the pair as files and as factors, and the trails of the images by name."""

    def __init__(self, device: torch.device, folder: Path, quick: bool = False):
        self.device = device
        self.config = NARROW if quick else FULL
        self.dtype = choose_type(device)
        self.unet = make_unet(self.config, device, self.dtype)
        self.sampler = Sampler(self.unet, self.config, 128 if device.type == "cuda" else 16)
        shapes = list_attention_shapes(self.unet)
        factors = make_factors(shapes, RANKS[0], 1), make_factors(shapes, RANKS[1], 2)
        self.files = write_pair(folder, factors)
        self.layers = rivals.find_layers(self.unet, factors)
        self.library = Library()
        self.trails: dict[str, list[Tensor]] = {}

    @cached_property
    def gamma(self) -> float:
        return rivals.find_gamma(self.layers)

    @cached_property
    def sums(self) -> list[tuple[float, float]]:
        return rivals.sum_by_force(self.layers)

    def draw(self, name: str, steps: int = STEPS, stop: int | None = None) -> None:
        self.trails[name] = self.sampler(steps=steps, stop=stop)

    def prepare(self) -> None:
        """Read and score the pair, as the first job with it does."""
        with klora(self.sampler, *self.files, library=self.library):
            pass

    def draw_ours(self, engine: str, steps: int = STEPS, count: int = 1) -> None:
        """One job of ``count`` images: planning again, opening, sampling, giving the model back."""
        with klora(self.sampler, *self.files, engine=engine, library=self.library):
            for i in range(count):
                self.draw(engine if i == 0 else f"{engine} {i}", steps)

    def draw_in_parts(self, engine: str, steps: int = STEPS) -> Parts:
        """The same, with clocks before K-LoRA's own hook and behind it."""
        began, told = [0.0], [(0, 0.0)]
        with klora(self.sampler, *self.files, engine=engine, library=self.library) as run:

            def first(*_: Any) -> None:
                began[0] = read_clock(self.device)

            def last(*_: Any) -> None:
                told.append((run.passes[-1].session.switches, read_clock(self.device) - began[0]))

            handles = [self.unet.register_forward_pre_hook(first, prepend=True), self.unet.register_forward_pre_hook(last)]
            try:
                self.draw(engine, steps)
            finally:
                for handle in handles:
                    handle.remove()
            closed = read_clock(self.device) - self.sampler.ended
        return Parts([(after[0] - before[0], after[1]) for before, after in zip(told, told[1:])], closed)

    def apart(self, name: str, step: int) -> float:
        """How far an image is from the reference after ``step``, as a part of the reference's size."""
        a, b = (self.trails[each][step].double() for each in (name, "reference"))
        return float((a - b).norm() / b.norm())


def draw_references(scene: Scene, weights: rivals.Weights, steps: int = STEPS) -> None:
    """K-LoRA by brute force: every layer's weight from scratch in fp64 and rounded once (``reference``), and beside the
    weights in the model's type (``beside``).  The table is by force too."""
    table = rivals.choose_by_force(scene.sums, scene.gamma, steps)
    now: list[list[bool]] = []

    def write(step: int) -> None:
        wanted = [row[step] for row in table]
        weights.write(wanted, torch.float64, now[-1] if now else None)
        now.append(wanted)

    def add(layer: rivals.Layer, x: Tensor) -> Tensor:
        return rivals.add_online(layer, x, rows[id(layer)][at_step[0]])

    with scene.sampler.watched(write):
        scene.draw("reference", steps)
    weights.restore()
    rows = {id(layer): row for layer, row in zip(scene.layers, table)}
    at_step = [0]
    with scene.sampler.watched(partial(at_step.__setitem__, 0)), rivals.hooked(scene.layers, add):
        scene.draw("beside", steps)


def check_images(scene: Scene, names: Sequence[str] = ("merge", "bypass", "remerge", "topk")) -> str:
    """A sentence with the differences.  Raises AssertionError if an image is not the one by force.

    What rounding alone changes is seen where nothing else differs: ΔW in the weights, and beside them.
    """
    for name, trail in scene.trails.items():
        assert bool(trail[-1].isfinite().all()), f"the image {name} is not finite"
    told = []
    for name in names:
        step = len(scene.trails[name]) - 1
        found, rounding = scene.apart(name, step), scene.apart("beside", step)
        others = min(scene.apart(other, step) for other in ("plain", "merged"))
        assert others > NEAR * rounding, f"other images are {others:.1e} away, rounding changes {rounding:.1e}: too near"
        assert found <= NEAR * rounding, f"{name} is {found:.1e} from brute force, rounding changes {rounding:.1e}"
        told.append(f"{name} {found:.1e} after {format_count(step + 1, 'step')}")
    last = len(scene.trails["merge"]) - 1
    beside, plain, merged = (f"{scene.apart(name, last):.1e}" for name in ("beside", "plain", "merged"))
    return (f"Apart from brute force (W + ΔW in fp64, rounded once), as a part of the image: {', '.join(told)}. ΔW beside "
            f"the weights instead of in them, by hand: {beside}. The plain image and the additive one: {plain}, {merged}.")


def measure_rounds(scene: Scene, weights: rivals.Weights, rounds: int) -> Times:
    """Seconds of whole images in turns; ``merging``: of both LoRAs plainly, which is done before the image ``merged``."""
    merging: list[float] = []

    @contextmanager
    def merged() -> Iterator[None]:
        merging.append(measure_seconds(weights.add_both, scene.device))
        yield
        weights.restore()

    candidates = {
        "plain": lambda: scene.draw("plain"),
        "merged": lambda: scene.draw("merged"),
        "merge": lambda: scene.draw_ours("merge"),
        "bypass": lambda: scene.draw_ours("bypass"),
    }
    return {**take_turns(candidates, rounds, scene.device, around={"merged": merged}), "merging": merging}


def measure_rivals(scene: Scene, weights: rivals.Weights) -> dict[str, float]:
    """Seconds of one step, from a few of them: re-merging everything, and Top-K at every forward."""
    now = [0]
    follow = partial(now.__setitem__, 0)
    table = rivals.choose_by_force(scene.sums, scene.gamma, STEPS)
    with scene.sampler.watched(lambda step: weights.write([row[step] for row in table], torch.float32)):
        remerged = measure_seconds(lambda: scene.draw("remerge", stop=REMERGED), scene.device) / REMERGED
    weights.restore()
    add = rivals.choose_at_every_forward(scene.gamma, lambda: now[0] / STEPS)
    with scene.sampler.watched(follow), rivals.hooked(scene.layers, add):
        topk = measure_seconds(lambda: scene.draw("topk", stop=1), scene.device)
    return {"remerge": remerged, "topk": topk}


def describe_parts(name: str, parts: Parts, image: float) -> list[str]:
    """A row: of one image, switches and what they take."""
    count, seconds = (sum(column) for column in zip(*parts.steps))
    later = [(n, s) for n, s in parts.steps[1:] if n]
    each = f"{1000 * sum(s for _, s in later) / max(1, sum(n for n, _ in later)):.2f} ms"
    quiet = [s for n, s in parts.steps[1:] if not n]
    still = f"{1e6 * median(quiet):.0f} µs" if quiet else "there was none"
    first = parts.steps[0]
    return [name, str(count), f"{first[1]:.2f} s ({first[0]})", each, f"{count / len(parts.steps):.0f}", still,
            f"{parts.close:.2f} s", f"{100 * (seconds + parts.close) / image:.1f} %"]  # fmt: skip


def measure(device: torch.device, quick: bool = False) -> list[str]:
    """The tables of 20 steps."""
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        weights = rivals.Weights(scene.layers)
        scene.draw("plain", stop=1)
        scene.prepare()
        draw_references(scene, weights)
        times = measure_rounds(scene, weights, 1 if quick else ROUNDS)
        steps = measure_rivals(scene, weights)
        parts = {engine: scene.draw_in_parts(engine) for engine in ("merge", "bypass")}
        said = check_images(scene)
    base = median(times["merged"])

    def extrapolate(name: str, how: str) -> list[str]:
        return [how, f"{STEPS * steps[name] / base:.2f}", f"{STEPS * steps[name]:.1f}"]

    def tell(name: str, how: str) -> list[str]:
        return [how, format_spread(find_ratios(times, name, "merged"), 3), f"{median(times[name]):.2f}"]

    rows = [
        tell("plain", "no LoRA"),
        [f"both merged plainly, which a host keeps for the next image (merging: {median(times['merging']):.2f} s)", "1",
         f"{base:.2f}"],
        tell("merge", "K-LoRA, engine `merge`"),
        tell("bypass", "K-LoRA, engine `bypass`"),
        extrapolate("remerge", f"everything merged anew at every step ({format_count(REMERGED, 'step')} measured)"),
        extrapolate("topk", "both products and Top-K at every forward, as published (1 step measured)"),
    ]  # fmt: skip
    model = f"{'narrow' if quick else 'full-size'} SDXL in {name_type(scene.dtype)}"
    title = f"{STEPS}-step image, {model}, {8 * scene.sampler.shape[2]}²"
    return [
        *make_table((title, "÷ merged plainly", "seconds"), rows), "",
        *make_table(PARTS_HEAD, [describe_parts(name, each, median(times[name])) for name, each in parts.items()]), "", said,
    ]  # fmt: skip
