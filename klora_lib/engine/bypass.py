"""Bypass: never writes the weight; a forward hook adds ΔW·x of the chosen LoRA to the layer's output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..devices import is_out_of_memory, move
from ..errors import HostError
from ..lora.deltas import Delta, count_columns
from ..numerics import exact_math
from .memory import Claims, MemoryBudget
from .site import Site, SiteDeltas, WeightedDelta


class ReadyUpdate(NamedTuple):
    """One update on one device and in one type: the matrices to apply one after the other, and what to add to the bias."""

    weights: tuple[Tensor, ...]
    bias: Tensor | None


class Bypassed:
    """One site whose weight we must not write (quantised, streamed).  The hook is added at the first choice."""

    def __init__(self, site: Site, deltas: SiteDeltas, budget: MemoryBudget | None = None):
        self.site = site
        self.deltas = deltas
        self.claims = Claims(budget or MemoryBudget(float("inf")))
        self.chosen: list[WeightedDelta] = []
        self.hook: Any = None
        self.made: dict[Any, ReadyUpdate] = {}  # of the current choice

    def show(self, mask: int) -> None:
        """From the next forward on, the output includes Σ w·ΔW·x of the updates in ``mask``."""
        chosen = self.deltas.choose(mask)
        if chosen != self.chosen:
            self.forget()
            self.chosen = chosen
        if chosen and self.hook is None:
            self.hook = self.site.module.register_forward_hook(self.add)

    def close(self) -> None:
        """Removes the hook and frees everything."""
        if self.hook is not None:
            self.hook.remove()
        self.hook = None
        self.chosen = []
        self.forget()

    def list_written(self) -> list[Tensor]:
        return []

    def is_attached(self) -> bool:
        return not self.chosen or (self.hook is not None and self.hook.id in self.site.module._forward_hooks)

    def forget(self) -> None:
        self.made.clear()
        self.claims.give_back()

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook.  args[0]: [..., in] or [batch, in, h, w]; output likewise with out.

        Raises HostError if there is no memory.
        """
        if not self.chosen:
            return None
        try:
            return self.add_terms(module, args, output)
        except Exception as e:
            if not is_out_of_memory(e):
                raise
            said = f"{output.device} has no memory left to add the LoRAs to the output of a layer"
            raise HostError(f"{said}; take a smaller image or batch") from e

    def add_terms(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0].to(output.dtype)
        result = output if may_change(module, args, output) else output.clone()
        part = result if self.site.rows is None else self.narrow_output(result)
        for weighted in self.chosen:
            for term in self.make_terms(weighted, x):
                part.add_(term)
        return result

    def narrow_output(self, output: Tensor) -> Tensor:
        assert self.site.rows is not None
        axis = 1 if isinstance(self.site.module, nn.Conv2d) else -1
        return output.narrow(axis, self.site.rows[0], self.site.rows[1] - self.site.rows[0])

    def make_terms(self, weighted: WeightedDelta, x: Tensor) -> Iterator[Tensor]:
        """w·ΔW·x and w·Δb, where the update has them; with two thin products where it has low-rank factors."""
        ready = self.make_ready(weighted, x)
        if ready.weights:
            yield self.apply_weights(ready.weights, x)
        if ready.bias is not None:
            yield ready.bias

    def apply_weights(self, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        module, (first, *rest) = self.site.module, weights
        if isinstance(module, nn.Conv2d):
            x = module._conv_forward(x, first, None)  # its stride, padding and padding mode (tiling sets circular)
            for weight in rest:
                x = nn.functional.conv2d(x, weight)
            return x
        for weight in weights:
            x = nn.functional.linear(x, weight)
        return x

    def make_ready(self, weighted: WeightedDelta, x: Tensor) -> ReadyUpdate:
        """The update on the device and in the type of ``x``.

        Two factors are small and are kept while the update is chosen.  A full matrix is as large as the weight: if a GPU
        that streams its weights has no room for it, it is made again at every forward.
        """
        key = id(weighted), x.device, x.dtype
        if key in self.made:
            return self.made[key]
        with exact_math(x.device):
            weights = tuple(t.to(x.dtype) for t in self.make_weights(weighted.delta, weighted.weight, x.device))
            bias = self.make_bias(weighted.delta, weighted.weight, x.device)
            ready = ReadyUpdate(weights, bias.to(x.dtype) if bias is not None else None)
        if len(weights) != 1 or self.claims.take(weights[0].nbytes):
            self.made[key] = ready
        return ready

    def make_weights(self, delta: Delta, w: float, device: torch.device) -> tuple[Tensor, ...]:
        """fp32 on ``device``, to apply in turn: (down, w·scale·up); without factors (w·ΔW,); () for a lone bias."""
        if len(delta.shape) == 1:
            return ()
        low_rank = delta.factors()
        if low_rank is None:
            base = self.site.read_weight(device).reshape(self.site.shape[0], -1)
            columns = count_columns(delta.shape) or base.shape[1]
            return (self.shape_kernel(delta.update(base[:, :columns]) * w),)
        up, down = (move(t, device, torch.float32) for t in low_rank[:2])
        up = up * (low_rank[2] * w)
        return self.shape_kernel(down), (up[:, :, None, None] if isinstance(self.site.module, nn.Conv2d) else up)

    def make_bias(self, delta: Delta, w: float, device: torch.device) -> Tensor | None:
        own = getattr(self.site.module, "bias", None)
        bias = None if delta.bias is None else move(delta.bias, device, torch.float32) * w
        if delta.bias_factor is not None and own is not None:
            scaled = move(self.site.take_part(own.detach()), device, torch.float32)
            scaled = scaled * move(delta.bias_factor, device, torch.float32) * w
            bias = scaled if bias is None else scaled + bias
        return bias[:, None, None] if bias is not None and isinstance(self.site.module, nn.Conv2d) else bias

    def shape_kernel(self, matrix: Tensor) -> Tensor:
        """[rows, in·kh·kw] in the shape of this layer's weight, zeros in its extra channels; [rows, in, kh, kw] for a
        convolution."""
        shape = self.site.shape
        extra = math.prod(shape[1:]) - matrix.shape[1]
        padded = nn.functional.pad(matrix, (0, extra)) if extra else matrix
        return padded.reshape(matrix.shape[0], *shape[1:]) if isinstance(self.site.module, nn.Conv2d) else padded


def may_change(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> bool:
    """Whether we may add to ``output`` in place: a layer of torch has just made it, and no other hook has seen it.

    If the layer returns its input or a tensor that it keeps, or if autograd needs the output, we must add to a copy.
    """
    hooks = (*module._forward_hooks.values(), *nn.modules.module._global_forward_hooks.values())
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or type(output) is not type(args[0]) or output.requires_grad:
        return False
    if any(not isinstance(getattr(hook, "__self__", None), Bypassed) for hook in hooks):
        return False
    if output.is_inference() and not torch.is_inference_mode_enabled():  # torch lets nobody write it
        return False
    kept = (*args, *vars(module).values(), *module.parameters(), *module.buffers())
    return all(find_storage(output) != find_storage(t) for t in kept if isinstance(t, Tensor))


def find_storage(tensor: Tensor) -> int:
    """An identifier of the memory that ``tensor`` is in."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
