"""The most memory of an image on the full-size UNet, above the model itself; each candidate in a process of its own.

``python -m tests.bench.memory merge cpu`` prints that of one, in bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import rivals
from .pairs import Factors
from .resident import MB, available, measure_peak, run_fresh
from .sampling import Scene
from .tables import make_table

HEAD = ("image", "peak above the model and its files", "÷ additive")
STEPS = 3  # every layer that switches does so within these
CANDIDATES = {
    "plain": "no LoRA", "merged": "both merged plainly, with the backup that a host keeps",
    "merge": "K-LoRA, `merge`, reading and scoring included", "bypass": "K-LoRA, `bypass`, reading and scoring included",
}  # fmt: skip


def read_factors(path: Path) -> Factors:
    tensors = load_file(path)
    names = [key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {name: (tensors[f"unet.{name}.lora_B.weight"], tensors[f"unet.{name}.lora_A.weight"]) for name in names}


def draw_merged(scene: Scene) -> None:
    """As a host does: read both files, keep the weights that will change, merge, sample, restore."""
    content, style = (read_factors(path) for path in scene.files)
    weights = rivals.Weights(rivals.find_layers(scene.unet, (content, style)))
    weights.add_both()
    scene.draw("merged", STEPS)
    weights.restore()


def measure_candidate(name: str, device: torch.device, quick: bool) -> dict[str, int]:
    """Bytes: the peak, the layers' weights, and the factors."""
    with tempfile.TemporaryDirectory(prefix="klora-bench-") as folder:
        scene = Scene(device, Path(folder), quick)
        touched = sum(layer.module.weight.nbytes for layer in scene.layers)
        factors = sum(t.nbytes for layer in scene.layers for t in (*layer.content, *layer.style))
        whole = sum(p.nbytes for p in scene.unet.parameters())
        scene.layers.clear()
        acts: dict[str, Callable[[], None]] = {
            "plain": lambda: scene.draw("plain", STEPS),
            "merged": lambda: draw_merged(scene),
            "merge": lambda: scene.draw_ours("merge", STEPS),
            "bypass": lambda: scene.draw_ours("bypass", STEPS),
        }
        scene.draw("warm", STEPS, stop=1)
        peak = measure_peak(acts[name], device)
    return {"peak": peak, "touched": touched, "factors": factors, "model": whole}


def measure(device: torch.device, quick: bool = False) -> list[str]:
    if device.type == "cpu" and not available():
        return ["Not measured: this system does not tell the peak of a process's memory."]
    extra = ["quick"] if quick else []
    found = {name: run_fresh("tests.bench.memory", name, device.type, *extra) for name in CANDIDATES}
    base = found["merged"]["peak"]
    peaks = [(what, found[name]["peak"]) for name, what in CANDIDATES.items()]
    rows = [[what, f"{peak / MB:.0f} MB", f"{peak / base:.2f}"] for what, peak in peaks]
    sizes = found["merge"]
    allowed = found["plain"]["peak"] + sizes["touched"] + sizes["factors"]
    within = "within" if sizes["peak"] <= allowed else "above"
    return [
        *make_table(HEAD, rows), "",
        f"The model has {sizes['model'] / MB:.0f} MB, the layers that the pair touches {sizes['touched'] / MB:.0f} MB, both "
        f"LoRAs' factors {sizes['factors'] / MB:.0f} MB. One backup, the factors and the plain image's own peak are "
        f"{allowed / MB:.0f} MB; `merge` is {within} that.",
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure_candidate(sys.argv[1], torch.device(sys.argv[2]), "quick" in sys.argv)))
