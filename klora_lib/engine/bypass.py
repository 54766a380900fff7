"""Bypass: never writes the weight; a forward hook adds ΔW·x of the chosen LoRA to the layer's output."""

from __future__ import annotations

import math
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
    """What is added to an output, on one device and in one type: the matrices to apply in turn, and a bias."""

    weights: tuple[Tensor, ...]  # (down, up), one matrix, or none
    bias: Tensor | None = None


class Bypassed:
    """One site whose weight we must not write (quantised, streamed).  The hook is added at the first choice."""

    def __init__(self, site: Site, deltas: SiteDeltas, budget: MemoryBudget | None = None):
        self.site = site
        self.deltas = deltas
        self.claims = Claims(budget or MemoryBudget(float("inf")))
        self.chosen: list[WeightedDelta] = []
        self.hook: Any = None
        self.made: list[ReadyUpdate] = []  # of the current choice, for the outputs that ``made_for`` says
        self.unkept: list[WeightedDelta] = []  # those of the choice that are made again at every forward
        self.made_for: tuple[torch.device, torch.dtype] | None = None

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
        self.made, self.unkept, self.made_for = [], [], None
        self.claims.give_back()

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook.  args[0]: [..., in] or [batch, in, h, w]; output likewise with out.

        Raises HostError if there is no memory.
        """
        if not self.chosen:
            return None
        try:
            return self.add_updates(module, args, output)
        except Exception as e:
            if not is_out_of_memory(e):
                raise
            said = f"{output.device} has no memory left to add the LoRAs to the output of a layer"
            raise HostError(f"{said}; take a smaller image or batch") from e

    def add_updates(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        kind = output.device, choose_type(output)
        if kind != self.made_for:
            self.prepare(*kind)
        x = args[0].to(kind[1])
        result = output if may_change(module, args, output) else output.clone()
        part = result if self.site.rows is None else self.narrow_output(result)
        for ready in self.made:
            if ready.weights:
                self.add_product(part, x, ready.weights)
            if ready.bias is not None:
                part.add_(ready.bias)
        for weighted in self.unkept:
            self.add_product(part, x, (self.make_matrix(weighted, *kind),))
        return result

    def narrow_output(self, output: Tensor) -> Tensor:
        assert self.site.rows is not None
        axis = 1 if isinstance(self.site.module, nn.Conv2d) else -1
        return output.narrow(axis, self.site.rows[0], self.site.rows[1] - self.site.rows[0])

    def add_product(self, part: Tensor, x: Tensor, weights: tuple[Tensor, ...]) -> None:
        """part ← part + W_n·…·W_1·x; by the last product itself where torch can do so."""
        *first, last = weights
        in_place = part.dtype == x.dtype and part.is_contiguous()
        if isinstance(self.site.module, nn.Conv2d):
            for weight in first:  # with the layer's stride, padding and padding mode (tiling sets circular)
                x = self.site.module._conv_forward(x, weight, None)
            if first and in_place and x.dim() == 4 and x.is_contiguous() and x.dtype == part.dtype:
                up = last.flatten(1).expand(len(x), -1, -1)  # [batch, out, rank]
                part.flatten(2).baddbmm_(up, x.flatten(2))
            else:
                part.add_(nn.functional.conv2d(x, last) if first else self.site.module._conv_forward(x, last, None))
            return
        x = x.reshape(-1, x.shape[-1])
        for weight in first:
            x = torch.mm(x, weight.t())
        if in_place and x.dtype == part.dtype:
            part.view(-1, part.shape[-1]).addmm_(x, last.t())
        else:
            part.add_(torch.mm(x, last.t()).view(part.shape))

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Makes the chosen updates for outputs on ``device``.  Those with two factors become one pair of factors.

        Factors are small and are kept while the updates are chosen.  A full matrix is as large as the weight: if a GPU that
        streams its weights has no room for it, it is made again at every forward.
        """
        self.forget()
        matrices = [each for each in self.chosen if len(each.delta.shape) > 1]
        with exact_math(device):
            pairs = [(each, self.make_factors(each, device)) for each in matrices]
            factors = [pair for _, pair in pairs if pair is not None]
            biases = [b for each in self.chosen if (b := self.make_bias(each.delta, each.weight, device)) is not None]
            bias = sum(biases[1:], biases[0]).to(dtype) if biases else None
            thin = (
                (torch.cat([d for d, _ in factors]).to(dtype), torch.cat([u for _, u in factors], 1).to(dtype))
                if factors
                else ()
            )
        made = [ReadyUpdate(thin, bias)] if thin or bias is not None else []
        size = math.prod(self.site.shape) * dtype.itemsize
        for weighted in (each for each, pair in pairs if pair is None):
            if self.claims.take(size):
                made.append(ReadyUpdate((self.make_matrix(weighted, device, dtype),)))
            else:
                self.unkept.append(weighted)
        self.made, self.made_for = made, (device, dtype)

    def make_factors(self, weighted: WeightedDelta, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """down and w·scale·up, in the shape of this layer's weight, fp32 on ``device``; None if there are no factors."""
        low_rank = weighted.delta.factors()
        if low_rank is None:
            return None
        up, down = (move(t, device, torch.float32) for t in low_rank[:2])
        up = up * (low_rank[2] * weighted.weight)
        return self.shape_kernel(down), (up[:, :, None, None] if isinstance(self.site.module, nn.Conv2d) else up)

    def make_matrix(self, weighted: WeightedDelta, device: torch.device, dtype: torch.dtype) -> Tensor:
        """w·ΔW in the shape of this layer's weight."""
        with exact_math(device):
            base = self.site.read_weight(device).reshape(self.site.shape[0], -1)
            columns = count_columns(weighted.delta.shape) or base.shape[1]
            return self.shape_kernel(weighted.delta.update(base[:, :columns]) * weighted.weight).to(dtype)

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


def choose_type(output: Tensor) -> torch.dtype:
    """The type of the factors: the output's; on the CPU fp32 for half precision.

    Most CPUs have no instructions for products in half precision, so that those of a LoRA take ten times as long.
    """
    half = output.device.type == "cpu" and output.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else output.dtype


def may_change(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> bool:
    """Whether we may add to ``output`` in place: a layer of torch has just made it, and no other hook has seen it.

    If the layer returns its input or a tensor that it keeps, or if autograd needs the output, we must add to a copy.
    """
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or type(output) is not type(args[0]) or output.requires_grad:
        return False
    hooks = (*module._forward_hooks.values(), *nn.modules.module._global_forward_hooks.values())
    if any(not isinstance(getattr(hook, "__self__", None), Bypassed) for hook in hooks):
        return False
    if output.is_inference() and not torch.is_inference_mode_enabled():  # torch lets nobody write it
        return False
    kept = [*args, *vars(module).values(), *module._parameters.values(), *module._buffers.values()]
    if module._modules:
        kept += [*module.parameters(), *module.buffers()]
    place = find_storage(output)
    return not any(isinstance(t, Tensor) and find_storage(t) == place for t in kept)


def find_storage(tensor: Tensor) -> int:
    """An identifier of the memory that ``tensor`` is in."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
