"""A forward with the engine bypass, against the plain one and one LoRA that a host adds online to the outputs of layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median

import torch

from klora_lib.diffusers.run import read_target
from klora_lib.engine.fusion import fuse_files
from klora_lib.engine.session import Session
from klora_lib.settings import Settings

from . import rivals
from .sampling import STEPS, Scene, name_type
from .tables import make_table
from .turns import find_ratios, format_spread, take_turns

FORWARDS = 4  # that are timed together
HALF = 0.5  # progress: some layers have the content, others the style
FP8 = getattr(torch, "float8_e4m3fn", None)
HEAD = ("forward", "weights", "÷ plain", "÷ one LoRA online", "seconds")


def open_session(scene: Scene, engine: str) -> Session:
    """A session of the pair on the scene's model; the caller advances and closes it."""
    content, style = ((path, path.stem) for path in scene.files)
    target = read_target(scene.sampler, scene.unet)
    fusion = fuse_files(scene.library, (content, style), Settings(enabled=True, engine=engine), target)
    return fusion.open(target, (1.0, 1.0), STEPS)[0]


def measure_weights(scene: Scene, title: str, rounds: int) -> list[list[str]]:
    @contextmanager
    def ours() -> Iterator[None]:
        session = open_session(scene, "bypass")
        try:
            session.advance(HALF)
            scene.draw("warm", stop=1)
            yield
        finally:
            session.close()

    def online() -> AbstractContextManager[None]:
        return rivals.hooked(scene.layers, rivals.add_online)

    def forward(name: str) -> Callable[[], None]:
        return lambda: scene.draw(name, stop=FORWARDS)

    candidates = {name: forward(name) for name in ("plain", "ours", "online")}
    scene.draw("warm", stop=1)
    times = take_turns(candidates, rounds, scene.device, around={"ours": ours, "online": online})
    rows = []
    for name, what in (("plain", "plain"), ("ours", "K-LoRA, `bypass`"), ("online", "one LoRA added online, by hand")):
        ratios = [format_spread(find_ratios(times, name, other), 3) for other in ("plain", "online")]
        rows.append([what, title, *ratios, f"{median(times[name]) / FORWARDS:.3f}"])
    return rows


def measure(device: torch.device, quick: bool = False) -> list[str]:
    rounds = 2 if quick else 4
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        rows = measure_weights(scene, name_type(scene.dtype), rounds)
        if FP8 is not None:
            scene.unet.enable_layerwise_casting(storage_dtype=FP8, compute_dtype=scene.dtype)
            title = f"fp8, cast to {name_type(scene.dtype)} at every forward"
            rows += measure_weights(scene, title, rounds)
    return make_table(HEAD, rows)
