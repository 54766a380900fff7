"""Bypass: the weight is never written; a forward hook adds the product of the choice to the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .site import Load, Loads, Site


class Bypassed:
    """One site whose weight we must not write (quantised, streamed).  The hook is there from the first choice on."""

    def __init__(self, site: Site, loads: Loads):
        self.site = site
        self.loads = loads
        self.chosen: list[Load] = []
        self.hook: Any = None
        self.tensors: dict[Any, tuple[Tensor, ...]] = {}  # of the current choice, on the device and in the type last asked

    def show(self, mask: int) -> None:
        """From the next forward on, the output carries Σ w·Δ(x) of the loads in ``mask``."""
        chosen = self.loads.chosen(mask)
        if chosen != self.chosen:
            self.tensors.clear()
            self.chosen = chosen
        if chosen and self.hook is None:
            self.hook = self.site.module.register_forward_hook(self.add)

    def close(self) -> None:
        """No hook, nothing kept."""
        if self.hook is not None:
            self.hook.remove()
        self.hook = None
        self.chosen = []
        self.tensors.clear()

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook.  args[0]: [..., in] or [batch, in, h, w]; output likewise with out."""
        if not self.chosen:
            return None
        x = args[0].to(output.dtype)
        total = sum(self.product(load, x) for load in self.chosen)
        if self.site.rows is None:
            return output + total
        result = output.clone()
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        first, last = self.site.rows
        result.narrow(axis, first, last - first).add_(total)
        return result

    def product(self, load: Load, x: Tensor) -> Tensor:
        """w·ΔW·x (+ w·Δb), by the low-rank factors where there are any."""
        first, *rest, bias = self.ready(load, x)
        module = self.site.module
        if isinstance(module, nn.Conv2d):
            x = module._conv_forward(x, first, None)  # its stride, padding and padding mode (tiling sets circular)
            for weight in rest:
                x = nn.functional.conv2d(x, weight)
        else:
            for weight in (first, *rest):
                x = nn.functional.linear(x, weight)
        return x + bias if bias.numel() else x

    def ready(self, load: Load, x: Tensor) -> tuple[Tensor, ...]:
        """Weights to apply in turn, then the bias (empty where there is none), as ``x`` needs them."""
        key = id(load), x.device, x.dtype
        if key not in self.tensors:
            self.tensors[key] = tuple(t.to(x.device, x.dtype) for t in self.parts(load))
        return self.tensors[key]

    def parts(self, load: Load) -> tuple[Tensor, ...]:
        """fp32: (down, w·scale·up, w·Δb), or (w·Δ, w·Δb) for a module without two factors."""
        delta, w = load.delta, load.weight
        bias = delta.bias.float() * w if delta.bias is not None else torch.empty(0)
        if isinstance(self.site.module, nn.Conv2d):
            bias = bias[:, None, None]
        low_rank = delta.factors()
        if low_rank is None:
            base = self.site.part(self.site.read(self.site.module)).reshape(delta.shape[0], -1)
            return self.kernel(delta.update(base[:, : self.loads.columns]) * w), bias
        up, down, scale = low_rank
        up = up.float() * (scale * w)
        return self.kernel(down.float()), (up[:, :, None, None] if isinstance(self.site.module, nn.Conv2d) else up), bias

    def kernel(self, matrix: Tensor) -> Tensor:
        """[rows, in·kh·kw] as this site's layer takes it: [rows, in, kh, kw] for a convolution."""
        if not isinstance(self.site.module, nn.Conv2d):
            return matrix
        window = self.site.module.weight.shape[2:]
        kernel = matrix.reshape(matrix.shape[0], -1, *window)
        extra = self.site.module.in_channels - kernel.shape[1]
        return nn.functional.pad(kernel, (0, 0, 0, 0, 0, extra)) if extra else kernel
