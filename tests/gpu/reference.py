"""The same images by hand: dense matrices and the formula, with nothing of klora_lib."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from ..diffusers.reference import rule

Who = Callable[[str], str]  # layer → "content" | "style"
At = Callable[[float], Who]  # of a progress


class Dense(Mapping[str, tuple[Tensor, int]]):
    """Layer → (ΔW [out, in·kh·kw], rank), multiplied out at every look: all those of a full-size pair are too many to keep.

    In fp64 where the device has it.
    """

    def __init__(self, path: Path, device: torch.device):
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
            told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        self.alpha: float | None = told.get("unet.lora_alpha")  # of all layers; None for the rank
        ends = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
        self.factors = {
            end.removeprefix("unet."): (tensors[f"{end}.lora_B.weight"], tensors[f"{end}.lora_A.weight"]) for end in ends
        }
        self.there = {"device": device, "dtype": torch.float32 if device.type == "mps" else torch.float64}

    def __getitem__(self, layer: str) -> tuple[Tensor, int]:
        up, down = (t.to(**self.there).flatten(1) for t in self.factors[layer])
        rank = down.shape[0]
        return up @ down * (1.0 if self.alpha is None else self.alpha / rank), rank

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.factors))

    def __len__(self) -> int:
        return len(self.factors)

    def only(self, layers: set[str]) -> Dense:
        part = copy.copy(self)
        part.factors = {k: v for k, v in self.factors.items() if k in layers}
        return part


class ByHand:
    """A pipeline's denoiser with the pair's ΔW written into it, or added beside it, as ``at`` says of each step."""

    def __init__(self, pipe: Any, pair: tuple[Path, Path], device: torch.device, steps: int):
        self.pipe, self.steps = pipe, steps
        self.both = {role: Dense(path, device) for role, path in zip(("content", "style"), pair)}
        shared = set(self.both["content"]) & set(self.both["style"])
        self.choose: At = rule(*(dense.only(shared) for dense in self.both.values()))
        self.shared = shared

    def klora(self, step: int) -> Who:
        """The rule at t/T; a layer of one file alone is always that file's."""
        choose = self.choose(step / self.steps)
        return lambda layer: choose(layer) if layer in self.shared else next(r for r, d in self.both.items() if layer in d)

    def content(self, step: int) -> Who:
        return lambda layer: "content"

    def style(self, step: int) -> Who:
        return lambda layer: "style"

    def changes(self, who: Who) -> Iterator[tuple[nn.Module, Tensor]]:
        """(layer, ΔW) of every layer that something is added to."""
        for layer in sorted({*self.both["content"], *self.both["style"]}):
            if layer in (dense := self.both[who(layer)]):
                yield self.pipe.unet.get_submodule(layer), dense[layer][0]

    @contextmanager
    def merged(self, at: Callable[[int], Who]) -> Iterator[Callable[..., dict]]:
        """In the weight, rounded once.  Yields what the pipeline is to call at the end of each step."""
        layers = {*self.both["content"], *self.both["style"]}
        base = {layer: self.pipe.unet.get_submodule(layer).weight.detach().cpu().clone() for layer in layers}

        @torch.no_grad()
        def write(step: int) -> None:
            for layer, weight in base.items():
                self.pipe.unet.get_submodule(layer).weight.copy_(weight)
            for module, change in self.changes(at(step)):
                module.weight.copy_(module.weight.to(change) + change.reshape(module.weight.shape))

        def after_step(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
            if step + 1 < self.steps:
                write(step + 1)
            return kwargs

        write(0)
        try:
            yield after_step
        finally:
            with torch.no_grad():
                for layer, weight in base.items():
                    self.pipe.unet.get_submodule(layer).weight.copy_(weight)

    @contextmanager
    def beside(self, at: Callable[[int], Who]) -> Iterator[Callable[..., dict]]:
        """The same change added to the layer's output: the numbers differ from ``merged`` by rounding alone."""
        handles: list[Any] = []

        def hang(step: int) -> None:
            take_down()
            for module, change in self.changes(at(step)):
                matrix = change.reshape(module.weight.shape).to(module.weight.dtype)
                handles.append(module.register_forward_hook(adder(matrix)))

        def take_down() -> None:
            while handles:
                handles.pop().remove()

        def after_step(pipe: Any, step: int, timestep: Any, kwargs: dict) -> dict:
            if step + 1 < self.steps:
                hang(step + 1)
            return kwargs

        hang(0)
        try:
            yield after_step
        finally:
            take_down()


def adder(matrix: Tensor) -> Callable[..., Tensor]:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return output + module._conv_forward(args[0], matrix, None)
        return output + nn.functional.linear(args[0], matrix)

    return add
