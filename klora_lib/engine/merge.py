"""Merge: the weight carries base + Δ of the choice.  A step without a switch costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .site import Load, Loads, Site

PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SPARE = 3 << 30  # bytes of a GPU left to the sampler's activations


class Room:
    """How many bytes of a device may hold backups and factors; what no longer fits stays in host memory."""

    def __init__(self, free: float):
        self.free = free

    @classmethod
    def on(cls, device: torch.device) -> Room:
        """What is free on ``device`` now (torch's own cache included), less SPARE; host memory has no bound here."""
        if device.type != "cuda":
            return cls(float("inf"))
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return cls(torch.cuda.mem_get_info(device)[0] + cached - SPARE)

    def take(self, size: int) -> bool:
        """Claim ``size`` bytes; False where they do not fit."""
        if size > self.free:
            return False
        self.free -= size
        return True


class Factors:
    """One load made ready for switching: its low-rank factors near the compute device, or its module as it is."""

    def __init__(self, load: Load, device: torch.device, room: Room):
        self.load = load
        self.device = device
        self.low_rank = load.delta.factors()
        if self.low_rank is not None:
            up, down, scale = self.low_rank  # up: [out, rank], down: [rank, in·kh·kw]
            if room.take(up.nbytes + down.nbytes):
                self.low_rank = up.to(device), down.to(device), scale

    def add_to(self, base: Tensor, out: Tensor) -> None:
        """out ← base + w·Δ(base).  ``base``, ``out``: fp32 [out, in·kh·kw], and may be the same tensor."""
        if self.low_rank is None:
            torch.add(base, self.load.delta.update(base), alpha=self.load.weight, out=out)
            return
        up, down, scale = self.low_rank
        up, down = up.to(self.device, torch.float32), down.to(self.device, torch.float32)
        torch.addmm(base, up, down, alpha=scale * self.load.weight, out=out)


class Merged:
    """One site whose weight we rewrite.  The backup is taken when the first change is due, and is exact."""

    def __init__(self, site: Site, loads: Loads, device: torch.device, room: Room):
        self.site = site
        self.loads = loads
        self.device = device
        self.room = room
        self.weight: Tensor | None = None  # backups, of the site's part
        self.bias: Tensor | None = None
        self.factors: dict[int, Factors] = {}

    def show(self, mask: int) -> None:
        """Weight ← base + Σ w·Δ of the loads in ``mask``, from the exact backup, in fp32, rounded once."""
        chosen = self.loads.chosen(mask)
        if not chosen and self.weight is None:
            return
        if self.weight is None:
            self.back_up()
        assert self.weight is not None
        if not chosen:
            self.restore()
            return
        self.write_weight(chosen)
        if self.bias is not None:
            self.write_bias(chosen)

    def write_weight(self, chosen: list[Load]) -> None:
        assert self.weight is not None
        target = self.site.part(self.site.module.weight.detach())
        base = self.weight.to(self.device, torch.float32).reshape(target.shape[0], -1)
        columns = self.loads.columns
        plain = target.dtype == torch.float32 and target.device == self.device and target.is_contiguous()
        if plain and columns == base.shape[1]:
            out = target.view(base.shape)
        else:
            out = base.clone()
        for load in chosen:
            self.ready(load).add_to(base[:, :columns], out[:, :columns])
            base = out
        if out.data_ptr() != target.data_ptr():
            target.copy_(out.view(target.shape))

    def write_bias(self, chosen: list[Load]) -> None:
        assert self.bias is not None
        total = self.bias.to(torch.float32)
        for load in chosen:
            if load.delta.bias is not None:
                total = total + load.weight * load.delta.bias.to(total)
        self.site.part(self.site.module.bias.detach()).copy_(total)

    def ready(self, load: Load) -> Factors:
        if id(load) not in self.factors:
            self.factors[id(load)] = Factors(load, self.device, self.room)
        return self.factors[id(load)]

    def back_up(self) -> None:
        self.weight = self.kept(self.site.part(self.site.module.weight.detach()))
        if self.loads.with_bias:
            self.bias = self.kept(self.site.part(self.site.module.bias.detach()))

    def kept(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self.room.take(tensor.nbytes) else tensor.to("cpu", copy=True)

    def restore(self) -> None:
        assert self.weight is not None
        self.site.part(self.site.module.weight.detach()).copy_(self.weight)
        if self.bias is not None:
            self.site.part(self.site.module.bias.detach()).copy_(self.bias)

    def close(self) -> None:
        """The weight bit for bit as it was, and nothing kept."""
        if self.weight is not None:
            self.restore()
            self.weight = self.bias = None
        self.factors.clear()
