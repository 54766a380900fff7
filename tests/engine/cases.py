"""Layers and modules to try the engine on, each module with its update written out a second time in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from klora_lib.engine.site import Site, SiteDeltas, WeightedDelta
from klora_lib.lora.deltas import Delta, Dora, Full, Lora, count_columns, fuse_parts
from klora_lib.lora.lycoris import Glora, Loha, Lokr
from klora_lib.lora.multiplied import Scaled, Turned

CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Update = Callable[[Tensor], Tensor]  # base [rows, columns] fp64 -> what is added to it, fp64


def rand(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


# --- layers ---


@dataclass(frozen=True)
class Layer:
    """A module of the model, the rows of it that a unit is about, and the shape of the unit's ΔW."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    x: tuple[int, ...]
    rows: tuple[int, int] | None = None


LAYERS = {
    "linear": Layer(lambda: nn.Linear(6, 8), (8, 6), (2, 5, 6)),
    "linear without bias": Layer(lambda: nn.Linear(6, 8, bias=False), (8, 6), (2, 5, 6)),
    "conv 3×3": Layer(lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular"), (6, 4, 3, 3), (2, 4, 8, 8)),
    "conv 1×1": Layer(lambda: nn.Conv2d(4, 6, 1, bias=False), (6, 4, 1, 1), (2, 4, 3, 3)),
    "conv 1×1, linear update": Layer(lambda: nn.Conv2d(4, 6, 1), (6, 4), (2, 4, 3, 3)),
    "channels_last": Layer(
        lambda: nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last), (6, 4, 3, 3), (2, 4, 4, 4)
    ),
    "rows of a fused linear": Layer(lambda: nn.Linear(6, 12), (4, 6), (2, 5, 6), (4, 8)),
    "inpainting": Layer(lambda: nn.Conv2d(9, 6, 3, padding=1), (6, 4, 3, 3), (2, 9, 4, 4)),
    "wider linear": Layer(lambda: nn.Linear(14, 8), (8, 6), (2, 5, 14)),
}


def make_layer(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    module = LAYERS[name].make().to(dtype)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(rand(*p.shape, seed=seed + i).to(dtype) / 3)  # a third: fp64 holds more than fp32 does
            p[(0,) * p.dim()] = -0.0
    return module.requires_grad_(False)


def site_of(name: str, module: nn.Module) -> Site:
    return Site(module, LAYERS[name].rows)


# --- modules ---


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], torch.Size(shape[1:]).numel()


def lora(shape: tuple[int, ...], seed: int, bias: bool = False) -> tuple[Delta, Update]:
    out, columns = flat(shape)
    up, down = rand(out, 3, seed=seed, size=0.3), rand(3, columns, seed=seed + 1, size=0.5)
    added = rand(out, seed=seed + 2) if bias else None
    return Lora(up, down, 0.5, shape, added), lambda base: 0.5 * up.double() @ down.double()


def lora_with_bias(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    return lora(shape, seed, bias=True)


def full(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    diff = rand(*flat(shape), seed=seed, size=0.3)
    return Full(diff, 1.0, shape), lambda base: diff.double()


def loha(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    out, columns = flat(shape)
    u1, d1, u2, d2 = (rand(*s, seed=seed + i, size=0.6) for i, s in enumerate([(out, 2), (2, columns)] * 2))
    delta = Loha(u1, d1, u2, d2, 0.5, shape)
    return delta, lambda base: 0.5 * (u1.double() @ d1.double()) * (u2.double() @ d2.double())


def lokr(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    out, columns = flat(shape)
    w1 = rand(2, 2, seed=seed, size=0.6)
    a, b = rand(out // 2, 2, seed=seed + 1, size=0.6), rand(2, columns // 2, seed=seed + 2)

    def update(base: Tensor) -> Tensor:
        w2 = a.double() @ b.double()
        return 0.5 * torch.cat([torch.cat([w1[i, j].double() * w2 for j in range(2)], 1) for i in range(2)])

    return Lokr((w1,), (a, b), 0.5, 2, shape), update


def glora(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    out, columns = flat(shape)
    n = shape[1]
    au, ad = rand(n, 2, seed=seed, size=0.3), rand(2, n, seed=seed + 1, size=0.3)
    bu, bd = rand(out, 2, seed=seed + 2, size=0.3), rand(2, columns, seed=seed + 3, size=0.3)

    def update(base: Tensor) -> Tensor:
        places = base.reshape(out, n, -1).transpose(1, 2)  # [out, place, in]
        a = (places @ (au.double() @ ad.double())).transpose(1, 2).reshape(base.shape)
        return 0.5 * (a + bu.double() @ bd.double())

    return Glora(au, ad, bu, bd, 0.5, shape), update


def dora_by_output(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    inner, step = lora(shape, seed)
    m = rand(shape[0], 1, seed=seed + 9).abs() + 0.5

    def update(base: Tensor) -> Tensor:
        turned = base + step(base)
        return m.double() * turned / turned.norm(dim=1, keepdim=True) - base

    return Dora(inner, m), update


def dora_by_input(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    inner, step = lora(shape, seed)
    m = rand(1, shape[1], seed=seed + 9).abs() + 0.5

    def update(base: Tensor) -> Tensor:
        turned = (base + step(base)).reshape(shape[0], shape[1], -1)
        scaled = turned / turned.norm(dim=(0, 2), keepdim=True) * m.double()[..., None]
        return scaled.reshape(base.shape) - base

    return Dora(inner, m), update


def fused(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    """Two parts stacked, the second absent."""
    half = shape[0] // 2, *shape[1:]
    part, step = lora(half, seed)
    delta = fuse_parts([part, None], [half[0], half[0]])
    return delta, lambda base: torch.cat([step(base), torch.zeros_like(base[half[0] :])])


def orthogonal(n: int, seed: int) -> Tensor:
    """R of an OFT block, fp64."""
    q = rand(n, n, seed=seed).double()
    q = (q - q.T) * 0.3
    return torch.eye(n).double() + 2 * q @ torch.linalg.inv(torch.eye(n).double() - q)


def oft(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    """Two blocks of rows, and a scale; the columns are the model's."""
    n = shape[0] // 2
    r, scale = [orthogonal(n, seed + i) for i in range(2)], rand(shape[0], 1, seed=seed + 5).abs() + 0.5
    turns = torch.stack([(each - torch.eye(n)).float() for each in r])[None]
    delta = Turned(turns, None, scale, False, (shape[0], 0))
    return delta, lambda base: scale.double() * torch.block_diag(*r) @ base - base


def oft_on_input(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    columns = flat(shape)[1]
    r = [orthogonal(columns // 2, seed + i) for i in range(2)]
    turns = torch.stack([(each - torch.eye(columns // 2)).float() for each in r])[None]
    delta = Turned(turns, None, None, True, (0, columns))
    return delta, lambda base: base @ torch.block_diag(*r).T - base


def ia3(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    """Of the output, with its bias, as PEFT has it."""
    factor = rand(shape[0], seed=seed)
    return Scaled(factor, False, scales_bias=True), lambda base: factor.double()[:, None] * base


def ia3_on_input(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    factor = rand(shape[1], seed=seed)
    return Scaled(factor, True), lambda base: base * factor.double().repeat_interleave(flat(shape)[1] // shape[1])


def boft(shape: tuple[int, ...], seed: int) -> tuple[Delta, Update]:
    """Two stages, each of two blocks, whose rows come in another order in each."""
    rows = shape[0]
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(rows, generator=generator) for _ in range(2)])
    stages = [[orthogonal(rows // 2, seed + 2 * i + j) for j in range(2)] for i in range(2)]
    turns = torch.stack([torch.stack([(r - torch.eye(rows // 2)).float() for r in stage]) for stage in stages])

    def turned(base: Tensor) -> Tensor:
        out = base.clone()
        for order, stage in zip(orders, stages):
            out[order] = torch.block_diag(*stage) @ out[order]
        return out - base

    return Turned(turns, orders, None, False, (rows, 0)), turned


LOW_RANK = {"lora": lora, "lora with bias": lora_with_bias, "fused": fused}
DENSE = {"full": full, "loha": loha, "lokr": lokr, "glora": glora}
DORAS = {"dora by output": dora_by_output, "dora by input": dora_by_input}
RELATIVE = {"oft": oft, "boft": boft, "oft on the input": oft_on_input, "ia3": ia3, "ia3 on the input": ia3_on_input}
KINDS = {**LOW_RANK, **DENSE, **DORAS, **RELATIVE}


# --- what must come out ---


@dataclass(frozen=True)
class Duo:
    """Two modules on one layer with the user's weights, and the updates they stand for."""

    deltas: SiteDeltas
    updates: tuple[Update, Update]

    def weight(self, site: Site, base: Tensor, mask: int) -> Tensor:
        """The whole weight in fp64 as the mask wants it: base + Σ w·ΔW(base), on the site's rows and columns."""
        want = base.double().clone()
        part = site.take_part(want)
        rows = part.reshape(part.shape[0], -1)
        before = rows.clone()
        rows = rows.clone()
        for i, weighted in enumerate((self.deltas.content, self.deltas.style)):
            if weighted is not None and mask >> i & 1:
                columns = count_columns(weighted.delta.shape) or rows.shape[1]
                rows[:, :columns] += weighted.weight * self.updates[i](before[:, :columns])
        part.copy_(rows.reshape(part.shape))
        return want

    def bias(self, site: Site, base: Tensor | None, mask: int) -> Tensor | None:
        wanted = [
            weighted.weight * weighted.delta.bias.double()
            for i, weighted in enumerate((self.deltas.content, self.deltas.style))
            if weighted is not None and mask >> i & 1 and weighted.delta.bias is not None
        ]
        own = torch.zeros(0) if base is None else site.take_part(base).double()
        wanted += [
            weighted.weight * weighted.delta.bias_factor.double() * own
            for i, weighted in enumerate((self.deltas.content, self.deltas.style))
            if base is not None and weighted is not None and mask >> i & 1 and weighted.delta.bias_factor is not None
        ]
        if base is None and not wanted:
            return None
        total = torch.zeros(site.module.weight.shape[0], dtype=torch.float64) if base is None else base.double().clone()
        for w in wanted:
            site.take_part(total).add_(w)
        return total


def duo(layer: str, content: str, style: str, weights: tuple[float, float] = (0.8, -0.6), seed: int = 40) -> Duo:
    one, two = KINDS[content](LAYERS[layer].shape, seed), KINDS[style](LAYERS[layer].shape, seed + 20)
    return Duo(SiteDeltas(WeightedDelta(one[0], weights[0]), WeightedDelta(two[0], weights[1])), (one[1], two[1]))


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as whole numbers, in the order of its indices: -0.0 is not 0.0, and a NaN is itself."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(whole).clone()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: bits(t) for name, t in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = snapshot(module)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
