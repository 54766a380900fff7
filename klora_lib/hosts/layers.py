"""From the module tree of a denoiser to sites by canonical name; shared by every host that keeps the original layout."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..core.dialects import canonical
from ..core.keys import members
from ..engine.site import Site, stored_weight


def sites_of(denoiser: nn.Module, read: Callable[[nn.Module], object] = stored_weight) -> dict[str, Site]:
    """Every module with a weight, under its diffusers-style name; a fused projection also under its members' names."""
    sites: dict[str, Site] = {}
    for path, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or path == "":
            continue
        name = canonical(path)
        sites[name] = Site(module, None, read)  # type: ignore[arg-type]
        sites.update(slices(name, module, read))
    return sites


def slices(name: str, module: nn.Module, read: Callable[[nn.Module], object]) -> dict[str, Site]:
    """The members of a fused projection as rows of its weight: q, k and v are as tall as the layer is wide."""
    parts = members(name)
    if not parts:
        return {}
    out, width = module.weight.shape[:2]  # type: ignore[union-attr]
    height = out // 3 if len(parts) == 3 else int(width)
    edges = [i * height for i in range(len(parts))] + [int(out)]
    return {part: Site(module, (edges[i], edges[i + 1]), read) for i, part in enumerate(parts)}  # type: ignore[arg-type]
