"""Layers as Forge Neo 2.27 to 2.29 has them (read in its sources of August and September 2026, never run)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

DYNAMIC = ("_dyn_down", "_dyn_ups", "_dyn_diffs", "_dyn_kron")


class QuantizedTensor(Tensor):
    """comfy-kitchen's TensorWiseINT8Layout: int8 [out, in] and a scale a row; whatever is asked of it, it answers plain."""

    _layout_cls = "TensorWiseINT8Layout"
    layout_cls = property(lambda self: type(self))

    @staticmethod
    def __new__(cls, qdata: Tensor, scale: Tensor) -> QuantizedTensor:
        return Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=torch.float32)  # type: ignore[attr-defined,return-value]

    def __init__(self, qdata: Tensor, scale: Tensor):
        self._qdata, self.scale = qdata, scale

    @classmethod
    def from_float(cls, weight: Tensor) -> QuantizedTensor:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    @property
    def storage_dtype(self) -> torch.dtype:
        return self._qdata.dtype

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return self._qdata.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            return cls(args[0]._qdata, args[0].scale)
        return function(*(a.dequantize() if isinstance(a, cls) else a for a in args), **(kwargs or {}))


def reads_in_inference_mode(weight: Tensor) -> bool:
    with torch.inference_mode():
        moved = weight.to("cpu")
    return not isinstance(moved, QuantizedTensor) or hasattr(moved, "_qdata")


class ForgeWeights:
    weight_function: list = []
    bias_function: list = []

    def weight_for_forward(self) -> Tensor:
        weight = self.weight  # type: ignore[attr-defined]
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        for function in self.weight_function:  # which may write into what they get: the host gives them a copy
            weight = function(weight.clone())
        return weight


class PlainLinear(nn.Linear, ForgeWeights):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_for_forward(), self.bias)


class PlainConv2d(nn.Conv2d, ForgeWeights):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight_for_forward(), self.bias)


class Linear(nn.Module, ForgeWeights):
    """Of mixed precision."""

    supports_dynamic_lora = True

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(QuantizedTensor.from_float(weight), requires_grad=False)
        if not reads_in_inference_mode(self.weight):
            pytest.skip("this torch cannot read a tensor of a type of its own in inference mode; Forge Neo ships 2.11")
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight_for_forward(), self.bias)
        first = 0
        for up, rank, entry in getattr(self, "_dyn_ups", ()):
            low = nn.functional.linear(x, self._dyn_down[first : first + rank])  # type: ignore[index]
            y, first = y + entry["strength"] * entry["factor"] * nn.functional.linear(low, up), first + rank
        for diff, entry in getattr(self, "_dyn_diffs", ()):
            y = y + entry["strength"] * entry["factor"] * nn.functional.linear(x, diff)
        for w1, w2, entry in getattr(self, "_dyn_kron", ()):
            y = y + entry["strength"] * entry["factor"] * nn.functional.linear(x, torch.kron(w1, w2))
        return y


def build(layer: Any, entries: list[dict]) -> None:
    of = {kind: [e for e in entries if e["kind"] == kind] for kind in ("lora", "diff", "lokr")}
    if of["lora"]:
        layer._dyn_down = torch.cat([e["tensors"][0] for e in of["lora"]])
        layer._dyn_ups = [[e["tensors"][1], e["tensors"][0].shape[0], e] for e in of["lora"]]
    if of["diff"]:
        layer._dyn_diffs = [[*e["tensors"], e] for e in of["diff"]]
    if of["lokr"]:
        layer._dyn_kron = [[*e["tensors"], e] for e in of["lokr"]]


def wipe(layer: nn.Module) -> None:
    for name in DYNAMIC:
        vars(layer).pop(name, None)


def mixed_precision(root: nn.Module) -> None:
    """Linear layers in int8, convolutions plain."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Linear(child.weight, child.bias))
            elif isinstance(child, nn.Conv2d):
                child.__class__ = PlainConv2d
