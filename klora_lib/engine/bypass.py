"""Bypass: the weight is never written; a forward hook adds the product of the choice to the output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..devices import move
from ..lora.deltas import Delta
from ..numerics import exact_math
from .memory import Claims, MemoryBudget
from .site import Load, Loads, Site


class Ready(NamedTuple):
    """A load on one device and in one type: weights to apply in turn, and what to add to the bias."""

    weights: tuple[Tensor, ...]
    bias: Tensor | None


class Bypassed:
    """One site whose weight we must not write (quantised, streamed).  The hook is there from the first choice on."""

    def __init__(self, site: Site, loads: Loads, budget: MemoryBudget | None = None):
        self.site = site
        self.loads = loads
        self.claims = Claims(budget or MemoryBudget(float("inf")))
        self.chosen: list[Load] = []
        self.hook: Any = None
        self.made: dict[Any, Ready] = {}  # of the current choice

    def show(self, mask: int) -> None:
        """From the next forward on, the output carries Σ w·Δ(x) of the loads in ``mask``."""
        chosen = self.loads.chosen(mask)
        if chosen != self.chosen:
            self.forget()
            self.chosen = chosen
        if chosen and self.hook is None:
            self.hook = self.site.module.register_forward_hook(self.add)

    def close(self) -> None:
        """No hook, nothing kept."""
        if self.hook is not None:
            self.hook.remove()
        self.hook = None
        self.chosen = []
        self.forget()

    def written(self) -> list[Tensor]:
        return []

    def attached(self) -> bool:
        return not self.chosen or (self.hook is not None and self.hook.id in self.site.module._forward_hooks)

    def forget(self) -> None:
        self.made.clear()
        self.claims.give_back()

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook.  args[0]: [..., in] or [batch, in, h, w]; output likewise with out."""
        if not self.chosen:
            return None
        x = args[0].to(output.dtype)
        result = output if ours_to_change(module, args, output) else output.clone()
        part = result if self.site.rows is None else self.rows_of(result)
        for load in self.chosen:
            for term in self.terms(load, x):
                part.add_(term)
        return result

    def rows_of(self, output: Tensor) -> Tensor:
        assert self.site.rows is not None
        axis = 1 if isinstance(self.site.module, nn.Conv2d) else -1
        return output.narrow(axis, self.site.rows[0], self.site.rows[1] - self.site.rows[0])

    def terms(self, load: Load, x: Tensor) -> Iterator[Tensor]:
        """w·ΔW·x and w·Δb, as far as the load has them; the product by its low-rank factors where there are any."""
        ready = self.ready(load, x)
        if ready.weights:
            yield self.product(ready.weights, x)
        if ready.bias is not None:
            yield ready.bias

    def product(self, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        module, (first, *rest) = self.site.module, weights
        if isinstance(module, nn.Conv2d):
            x = module._conv_forward(x, first, None)  # its stride, padding and padding mode (tiling sets circular)
            for weight in rest:
                x = nn.functional.conv2d(x, weight)
            return x
        for weight in weights:
            x = nn.functional.linear(x, weight)
        return x

    def ready(self, load: Load, x: Tensor) -> Ready:
        """The load as ``x`` needs it: on its device, in its type.

        Two factors are small and kept while chosen.  A whole matrix is as large as the weight: where a GPU that streams
        its weights has no room for it, it is made anew at every forward.
        """
        key = id(load), x.device, x.dtype
        if key in self.made:
            return self.made[key]
        with exact_math(x.device):
            weights = tuple(t.to(x.dtype) for t in self.weights(load.delta, load.weight, x.device))
            bias = self.bias(load.delta, load.weight, x.device)
            ready = Ready(weights, bias.to(x.dtype) if bias is not None else None)
        if len(weights) != 1 or self.claims.take(weights[0].nbytes):
            self.made[key] = ready
        return ready

    def weights(self, delta: Delta, w: float, device: torch.device) -> tuple[Tensor, ...]:
        """fp32 on ``device``, to be applied in turn: (down, w·scale·up); (w·Δ,) without two factors; () for a bias alone."""
        if len(delta.shape) == 1:
            return ()
        low_rank = delta.factors()
        if low_rank is None:
            base = self.site.numbers(device).reshape(self.site.shape[0], -1)
            return (self.kernel(delta.update(base[:, : self.loads.columns]) * w),)
        up, down = (move(t, device, torch.float32) for t in low_rank[:2])
        up = up * (low_rank[2] * w)
        return self.kernel(down), (up[:, :, None, None] if isinstance(self.site.module, nn.Conv2d) else up)

    def bias(self, delta: Delta, w: float, device: torch.device) -> Tensor | None:
        own = getattr(self.site.module, "bias", None)
        bias = None if delta.bias is None else move(delta.bias, device, torch.float32) * w
        if delta.bias_factor is not None and own is not None:
            scaled = move(self.site.part(own.detach()), device, torch.float32)
            scaled = scaled * move(delta.bias_factor, device, torch.float32) * w
            bias = scaled if bias is None else scaled + bias
        return bias[:, None, None] if bias is not None and isinstance(self.site.module, nn.Conv2d) else bias

    def kernel(self, matrix: Tensor) -> Tensor:
        """[rows, in·kh·kw] as this site's layer takes it, with zeros for its further channels; [rows, in, kh, kw] for a
        convolution."""
        shape = self.site.shape
        extra = math.prod(shape[1:]) - matrix.shape[1]
        padded = nn.functional.pad(matrix, (0, extra)) if extra else matrix
        return padded.reshape(matrix.shape[0], *shape[1:]) if isinstance(self.site.module, nn.Conv2d) else padded


def ours_to_change(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> bool:
    """Whether nobody but us has ``output``: a layer of torch made it just now, and no hook of another's has seen it.

    Everything else gets a copy of its own: a layer that hands on its input or something it keeps, a graph of gradients.
    """
    hooks = (*module._forward_hooks.values(), *nn.modules.module._global_forward_hooks.values())
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or type(output) is not type(args[0]) or output.requires_grad:
        return False
    if any(not isinstance(getattr(hook, "__self__", None), Bypassed) for hook in hooks):
        return False
    if output.is_inference() and not torch.is_inference_mode_enabled():  # torch lets nobody write it
        return False
    kept = (*args, *vars(module).values(), *module.parameters(), *module.buffers())
    return all(memory(output) != memory(t) for t in kept if isinstance(t, Tensor))


def memory(tensor: Tensor) -> int:
    """Which piece of memory it is in."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
