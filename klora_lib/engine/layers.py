"""The layers of a denoiser as sites by canonical name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from ..lora.architectures import make_canonical
from ..lora.keys import list_members
from .site import Packed, Site, read_stored_weight


def find_no_packing(module: nn.Module) -> Packed | None:
    """For hosts without packed weights: None for every layer."""
    return None


def list_sites(
    denoiser: nn.Module,
    read: Callable[[nn.Module], object] = read_stored_weight,
    packing: Callable[[nn.Module], Packed | None] = find_no_packing,
) -> dict[str, Site]:
    """Every module with a weight by its canonical name; a fused projection also by its members' names."""
    return collect_sites(denoiser.named_modules(), read, packing)


def collect_sites(
    layers: Iterable[tuple[str, nn.Module]],
    read: Callable[[nn.Module], object] = read_stored_weight,
    packing: Callable[[nn.Module], Packed | None] = find_no_packing,
) -> dict[str, Site]:
    """The same for pairs of (path, module).  If a fused projection comes after its members, it replaces them."""
    sites: dict[str, Site] = {}
    for path, module in layers:
        weight = getattr(module, "weight", None)
        if weight is None or path == "":
            continue
        name = make_canonical(path)
        sites[name] = Site(module, None, read, packing(module))  # type: ignore[arg-type]
        sites.update(split_fused(name, sites[name]))
    return sites


def split_fused(name: str, site: Site) -> dict[str, Site]:
    """The members of a fused projection, each with its rows of the weight.

    q has as many rows as the layer has inputs.  So have k and v if an mlp follows; else they have half of the remaining
    rows each (Lumina 2 has fewer heads there).
    """
    parts = list_members(name)
    if not parts:
        return {}
    out, width = site.shape[:2]
    height = width if len(parts) > 3 else (out - width) // 2
    edges = [0, *(width + i * height for i in range(len(parts) - 1)), out]
    return {part: replace(site, rows=(edges[i], edges[i + 1])) for i, part in enumerate(parts)}
