"""From the module tree of a denoiser to sites by canonical name; shared by every host that keeps the original layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from ..lora.architectures import canonical
from ..lora.keys import members
from .site import Packed, Site, stored_weight


def never(module: nn.Module) -> Packed | None:
    """No weight of this host is packed."""
    return None


def sites_of(
    denoiser: nn.Module,
    read: Callable[[nn.Module], object] = stored_weight,
    packing: Callable[[nn.Module], Packed | None] = never,
) -> dict[str, Site]:
    """Every module with a weight, under its diffusers-style name; a fused projection also under its members' names."""
    return sites_from(denoiser.named_modules(), read, packing)


def sites_from(
    layers: Iterable[tuple[str, nn.Module]],
    read: Callable[[nn.Module], object] = stored_weight,
    packing: Callable[[nn.Module], Packed | None] = never,
) -> dict[str, Site]:
    """The same of (path, module); a fused projection that comes behind its members takes their names over."""
    sites: dict[str, Site] = {}
    for path, module in layers:
        weight = getattr(module, "weight", None)
        if weight is None or path == "":
            continue
        name = canonical(path)
        sites[name] = Site(module, None, read, packing(module))  # type: ignore[arg-type]
        sites.update(slices(name, sites[name]))
    return sites


def slices(name: str, site: Site) -> dict[str, Site]:
    """The members of a fused projection as rows of its weight.

    q is as tall as the layer is wide; so are k and v where an mlp follows, and otherwise they share what is left
    (Lumina 2 has fewer heads there).
    """
    parts = members(name)
    if not parts:
        return {}
    out, width = site.shape[:2]
    height = width if len(parts) > 3 else (out - width) // 2
    edges = [0, *(width + i * height for i in range(len(parts) - 1)), out]
    return {part: replace(site, rows=(edges[i], edges[i + 1])) for i, part in enumerate(parts)}
