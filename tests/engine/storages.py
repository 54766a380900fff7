"""Layers that keep their weight the ways hosts do: cast at every forward, packed, replaced by the first forward, moved.

Each computes with ``numbers(module)``; the parameter that is stored is another tensor, of another type, shape or place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from klora_lib.engine.site import Packed, Site, read_stored_weight

from .cases import rand

OUT, IN = 8, 6


class Cast(nn.Module):
    """A host's manual cast: weight and bias are brought to the input's type (and device) at every forward."""

    def __init__(self, weight: Tensor, scale: float | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(rand(OUT, seed=2).to(weight.dtype), requires_grad=False)
        self.scale_weight = None if scale is None else torch.tensor(scale)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if self.scale_weight is not None:
            weight = weight * self.scale_weight.to(x.dtype)
        return nn.functional.linear(x, weight, self.bias.to(x.dtype))


class Blocks(nn.Parameter):
    """A parameter whose data are bytes; torch's own operations see the bytes, as with the hosts' subclasses."""

    def __new__(cls, data: Tensor) -> Blocks:
        return super().__new__(cls, data, requires_grad=False)


def pack(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Four bits a number, [N, 1] bytes as bitsandbytes stores them, and the step between two numbers."""
    step = numbers.abs().max() / 7
    codes = (numbers / step).round().clamp(-8, 7).to(torch.int8).flatten() + 8
    return (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], step


def unpack(data: Tensor, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    codes = torch.stack([data >> 4, data & 15], dim=-1).flatten().float() - 8
    return (codes * step).reshape(shape)


class Params4bit(Blocks):
    """Float numbers until they are packed; then bytes of shape [N, 1], the numbers' shape in ``quant_state``."""

    bnb_quantized = False
    quant_type = "nf4"
    quant_state = None

    def packed(self) -> Params4bit:
        data, step = pack(self.detach().float())
        new = Params4bit(data)
        new.quant_state, new.bnb_quantized = SimpleNamespace(step=step, shape=self.shape), True
        return new


class Linear4bit(nn.Module):
    """forward never looks at the bytes' shape.  A streamed layer packs its weight within the first forward."""

    def __init__(self, weight: Params4bit):
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(rand(OUT, seed=2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.bnb_quantized:
            self.weight = self.weight.packed()
        state = self.weight.quant_state
        return nn.functional.linear(x, unpack(self.weight.data, state.step, state.shape).to(x.dtype), self.bias.to(x.dtype))


class ParameterGGUF(Blocks):
    """Bytes that answer with the shape of the numbers they stand for."""

    gguf_cls = "Q4"

    def __new__(cls, data: Tensor, step: Tensor, real_shape: tuple[int, ...]) -> ParameterGGUF:
        new = super().__new__(cls, data)
        new.step, new.real_shape = step, torch.Size(real_shape)
        return new

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.real_shape


class LinearGGUF(nn.Module):
    """Unpacks at every forward; a bias of another type than the input is replaced by the first one."""

    def __init__(self, weight: ParameterGGUF):
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(rand(OUT, seed=2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias.dtype != x.dtype:
            self.bias = nn.Parameter(self.bias.to(x.dtype), requires_grad=False)
        weight = unpack(self.weight.data, self.weight.step, self.weight.shape)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


# --- what a host would tell of them ---


def packing(module: nn.Module) -> Packed | None:
    weight = module.weight
    if isinstance(weight, Params4bit):
        shape = weight.shape if weight.quant_state is None else weight.quant_state.shape
        return Packed("bitsandbytes nf4 weights", tuple(shape))
    if isinstance(weight, ParameterGGUF):
        return Packed("gguf weights", tuple(weight.shape))
    if getattr(module, "scale_weight", None) is not None:
        return Packed("torch.float16 weights with a scale", tuple(weight.shape))
    return None


def numbers(module: nn.Module) -> Tensor:
    """What the layer computes with, fp32."""
    weight = module.weight
    if isinstance(weight, Params4bit) and weight.bnb_quantized:
        return unpack(weight.data, weight.quant_state.step, weight.quant_state.shape)
    if isinstance(weight, ParameterGGUF):
        return unpack(weight.data, weight.step, weight.shape)
    scale = getattr(module, "scale_weight", None)
    return read_stored_weight(module) * (1.0 if scale is None else scale)


def site_of(module: nn.Module) -> Site:
    return Site(module, None, numbers, packing(module))


@dataclass(frozen=True)
class Storage:
    make: Callable[[], nn.Module]
    kind: str  # in a refusal
    dtype: torch.dtype = torch.float32  # of the input


def base() -> Tensor:
    return rand(OUT, IN, seed=1) / 3


STORAGES = {
    "fp8 e4m3": Storage(lambda: Cast(base().to(torch.float8_e4m3fn)), "torch.float8_e4m3fn weights"),
    "fp8 e5m2": Storage(lambda: Cast(base().to(torch.float8_e5m2)), "torch.float8_e5m2 weights", torch.bfloat16),
    "scaled": Storage(lambda: Cast(base().half() * 64, 1 / 64), "torch.float16 weights with a scale"),
    "4 bit": Storage(lambda: Linear4bit(Params4bit(base()).packed()), "bitsandbytes nf4 weights"),
    "4 bit in fp16": Storage(lambda: Linear4bit(Params4bit(base()).packed()), "bitsandbytes nf4 weights", torch.float16),
    "4 bit, packed by its first forward": Storage(lambda: Linear4bit(Params4bit(base())), "bitsandbytes nf4 weights"),
    "gguf": Storage(lambda: LinearGGUF(ParameterGGUF(*pack(base()), (OUT, IN))), "gguf weights"),
    "gguf in bf16": Storage(lambda: LinearGGUF(ParameterGGUF(*pack(base()), (OUT, IN))), "gguf weights", torch.bfloat16),
}
