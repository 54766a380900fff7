"""One row: a model, a type of weights, an engine and a way to hold the model; what is measured, and what of it is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import Tensor, nn

from klora_lib.diffusers import klora
from klora_lib.errors import HostError
from klora_lib.rule.cache import Library

from .clock import Clock, switch_times
from .models import Model, image
from .reference import ByHand

FP8 = getattr(torch, "float8_e4m3fn", None)
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}  # it computes in
WAYS = ("on the device", "model offload", "sequential offload", "compiled")
EXTREMES = ("content", "style")
NEAR = 3  # times what rounding alone changes
APART = 2  # times what is allowed: so far apart are the images that must not be confused


@dataclass(frozen=True)
class Row:
    model: Model
    weights: str
    engine: str
    way: str

    @property
    def refused(self) -> str:
        """What the refusal says where this cannot be; "" where it can."""
        if self.engine == "merge" and (self.weights == "fp8" or self.way == "sequential offload"):
            return "merge cannot write"
        return "bypass adds by hooks" if self.engine == "bypass" and self.way == "compiled" else ""

    @property
    def title(self) -> str:
        return " ".join((self.model.name, self.weights, self.engine, self.way))


def rows(models: list[Model]) -> Iterator[Row]:
    """fp32 for the toy alone.  fp8 weights are cast at every forward, by hooks that neither offload nor compile expects."""
    for model, weights in product(models, TYPES):
        if (weights == "fp32" and model.name != "toy") or (weights == "fp8" and FP8 is None):
            continue
        for engine, way in product(("merge", "bypass"), WAYS[:1] if weights == "fp8" else WAYS):
            yield Row(model, weights, engine, way)


@dataclass
class Bench:
    """What all rows share.  known: the images by hand, by model and type."""

    device: torch.device
    steps: int
    rounds: int
    backend: str
    folder: Path
    known: dict[tuple[str, str], dict[str, Tensor]]

    def pipeline(self, row: Row) -> Any:
        pipe = row.model.make(self.device, TYPES[row.weights])
        if row.weights == "fp8":
            with torch.no_grad():
                for module in pipe.unet.modules():
                    for p in module.parameters(recurse=False) if isinstance(module, (nn.Linear, nn.Conv2d)) else ():
                        p.copy_(p.to(FP8))
        return pipe

    def by_hand(self, row: Row) -> dict[str, Tensor]:
        """Images without LoRA, of both extremes and of K-LoRA; the last also with ΔW beside the weights."""
        key = row.model.name, row.weights
        if key not in self.known:
            pipe = self.pipeline(row)
            hand = ByHand(pipe, row.model.pair(self.folder), self.device, self.steps)
            images = {"plain": image(pipe, row.model, self.steps)}
            for name, block in {
                **{name: hand.merged(getattr(hand, name)) for name in (*EXTREMES, "klora")},
                "beside": hand.beside(hand.klora),
            }.items():
                with block as after_step:
                    images[name] = image(pipe, row.model, self.steps, callback_on_step_end=after_step)
            self.known[key] = images
        return self.known[key]


def held(pipe: Any, row: Row, bench: Bench) -> Callable[[], None]:
    """Have the pipeline held as the row says; the answer undoes it, as far as a pipeline can undo it."""
    if row.weights == "fp8":
        pipe.unet.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=TYPES["fp8"])
    if row.way == "model offload":
        pipe.enable_model_cpu_offload(device=bench.device)
    elif row.way == "sequential offload":
        if bench.device.type == "cpu":  # "cpu:0", as a pipeline would say, is another device than "cpu" to accelerate
            accelerate.cpu_offload(pipe.unet, bench.device)
        else:
            pipe.enable_sequential_cpu_offload(device=bench.device)
    elif row.way == "compiled":
        pipe.unet.compile(backend=bench.backend)
    return pipe.remove_all_hooks


def bits(pipe: Any) -> dict[str, str]:
    """A hash of the bits of every parameter of the denoiser."""
    return {
        name: hashlib.blake2b(p.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, p in pipe.unet.named_parameters()
    }


def apart(one: Tensor, other: Tensor) -> float:
    """The size of the difference, as a part of the size of ``other``."""
    return float((one - other).norm() / other.norm())


def check(row: Row, bench: Bench) -> tuple[dict[str, str], list[str]]:
    """The cells of the row, and what is wrong."""
    hand, pair = bench.by_hand(row), row.model.pair(bench.folder)
    pipe = bench.pipeline(row)
    if row.weights == "fp8":  # cast first: those are the weights to be found again
        held(pipe, row, bench)
    before = bits(pipe)
    let_go = pipe.remove_all_hooks if row.weights == "fp8" else held(pipe, row, bench)
    if row.refused:
        cells, wrong = refusal(row, pipe, pair)
    else:
        cells, wrong = images(row, bench, pipe, pair, hand)
        cells |= costs(row, bench, pipe, pair)
    let_go()
    cells["weights"] = "as before" if bits(pipe) == before else "changed"
    return cells, wrong + (["weights changed"] if cells["weights"] == "changed" else [])


def refusal(row: Row, pipe: Any, pair: tuple[Path, Path]) -> tuple[dict[str, str], list[str]]:
    try:
        with klora(pipe, *pair, engine=row.engine):
            return {}, ["was not refused"]
    except HostError as e:
        return {"klora": "refused"}, [] if row.refused in str(e) else [f"refused with {e}"]


def images(
    row: Row, bench: Bench, pipe: Any, pair: tuple[Path, Path], hand: dict[str, Tensor]
) -> tuple[dict[str, str], list[str]]:
    """How far each image is from the one by hand.

    allowed: ``NEAR`` times what rounding does to the image in this type, seen where nothing else differs: ΔW in the weight
    against beside it, by hand; and the plain image of this row against that of a model on the device.
    """
    plain, got = image(pipe, row.model, bench.steps), {}
    for method in (*EXTREMES, "klora"):
        with klora(pipe, *pair, engine=row.engine, method=method):
            got[method] = image(pipe, row.model, bench.steps)
    allowed = NEAR * max(apart(hand["beside"], hand["klora"]), apart(plain, hand["plain"]))
    found = {name: apart(x, hand[name]) for name, x in got.items()}
    others = min(apart(x, got["klora"]) for x in (plain, got["content"], got["style"]))
    after = image(pipe, row.model, bench.steps)
    wrong = [f"{name} is {x:.1e} from the one by hand" for name, x in found.items() if not x <= allowed]
    if not others > APART * allowed:
        wrong.append(f"images are {others:.1e} apart, too near to tell one from another")
    if not torch.equal(after, plain):
        wrong.append(f"the plain image afterwards is {apart(after, plain):.1e} from the one before")
    return {k: f"{x:.1e}" for k, x in {**found, "allowed": allowed, "apart": others}.items()}, wrong


def costs(row: Row, bench: Bench, pipe: Any, pair: tuple[Path, Path]) -> dict[str, str]:
    """Memory and time against the plain image, in turns."""
    clock, library = Clock(bench.device), Library()
    rounds = []
    for _ in range(bench.rounds):
        plain = clock.measure(lambda: image(pipe, row.model, bench.steps))
        with klora(pipe, *pair, engine=row.engine, library=library):
            rounds.append((plain, clock.measure(lambda: image(pipe, row.model, bench.steps))))
    cells = {"peak": clock.memory(rounds), "time": clock.times(rounds)}
    if row.way == "compiled":
        return cells | {"switch": "not run: its hooks would be compiled anew"}
    with klora(pipe, *pair, engine=row.engine, library=library) as run:
        switches, seconds = switch_times(run, pipe.unet, clock, lambda: image(pipe, row.model, bench.steps))
    return cells | {"switch": f"{1000 * seconds / switches:.2f} ({switches})" if switches else "nothing switched"}
