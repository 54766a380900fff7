"""LoRAs that Forge Neo adds at every forward of a layer ("patch LoRAs on-the-fly").

They are functions of the layer's weight.  Since 2.27 some layers (mixed precision) also keep them as matrices, and add
their product to the output: ``_dyn_down`` with ``_dyn_ups`` (low rank), ``_dyn_diffs`` (whole), ``_dyn_kron`` (LoKr).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import HostError
from .contract import Aside

DYNAMIC = "_dyn_"  # how the names of what such a layer keeps begin
DRIFT = "this WebUI's LoRA loader has changed"


class Part(NamedTuple):
    """One LoRA that a layer adds to its output."""

    entry: Mapping[str, Any]  # the host's: "strength", which may change from one step to the next, and "factor"
    dense: Callable[[], Tensor]  # ΔW without these two, fp32, [out, in]

    @property
    def strength(self) -> float:
        return float(self.entry["strength"]) * float(self.entry["factor"])


def parts(layer: nn.Module) -> list[Part]:
    held = {key: value for key, value in vars(layer).items() if key.startswith(DYNAMIC)}
    ups, down, diffs, krons = (held.pop(DYNAMIC + key, ()) for key in ("ups", "down", "diffs", "kron"))
    if held:
        raise ValueError(f"unknown: {min(held)}")
    found, first = [], 0
    for up, rank, entry in ups:
        found.append(Part(entry, product(up, down[first : first + rank])))
        first += rank
    found += [Part(entry, diff.float) for diff, entry in diffs]
    found += [Part(entry, kronecker(w1, w2)) for w1, w2, entry in krons]
    return found


def product(up: Tensor, down: Tensor) -> Callable[[], Tensor]:
    if up.shape[1] != down.shape[0]:  # [out, rank] @ [rank, in]
        raise ValueError(f"{tuple(up.shape)} @ {tuple(down.shape)}")
    return lambda: up.float() @ down.to(up.device).float()


def kronecker(w1: Tensor, w2: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.kron(w1.float(), w2.to(w1.device).float())


def under(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight (fp32, as numbers) with all of them: what the layer computes with.  ``weight`` itself is not changed."""
    for function in getattr(layer, "weight_function", ()):
        weight = function(weight.clone())  # the host's functions write into what they get
    for part in parts(layer):
        weight = weight + part.strength * part.dense().to(weight.device).reshape(weight.shape)
    return weight


def acting(layer: nn.Module, name: str = "a layer") -> tuple[Any, ...]:
    """What stands between the layer's weight and what it computes with, and how strongly; () where nothing does.

    Args: name: of the layer, for the message.
    Raises HostError where that is not of a form we know.
    """
    try:
        functions = getattr(layer, "weight_function", ())
        strengths = [(f, *(float(patch[0]) for patch in getattr(f, "patch", ()))) for f in functions]
        return (*strengths, *((id(part.entry), part.strength) for part in parts(layer)))
    except (TypeError, ValueError, LookupError, AttributeError) as e:
        raise HostError(f"{DRIFT}: K-LoRA cannot read the LoRAs that {name} adds at every forward ({e})") from None


def refuse_unknown(unet: Any) -> None:
    """Raise HostError where a patcher adds LoRAs at every forward, and we cannot read them on its layers.

    They are on the layers once the model carries the patches; before that the patcher has only noted them.
    """
    model = unet.model
    known = [acting(m, name) or getattr(m, "bias_function", ()) for name, m in model.diffusion_model.named_modules()]
    if any(known) or not has_any(unet):
        return
    carried = getattr(model, "current_weight_patches_uuid", None)
    if carried is not None and carried == unet.patches_uuid:
        raise HostError(f"{DRIFT}: it adds LoRAs at every forward in a way that K-LoRA does not know")


def has_any(unet: Any) -> bool:
    """Whether the patcher adds LoRAs at every forward, by its own word."""
    return hasattr(unet, "has_online_lora") and bool(unet.has_online_lora())


@contextmanager
def strengths_followed(unet: Any, aside: Aside) -> Iterator[None]:
    """While open: a layer on which a strength has changed since the last forward is put aside and shown again.

    Neo's own script changes them from step to step, and a DoRA of ours keeps what it made of the layer's numbers.
    """
    if not has_any(unet):
        yield
        return
    denoiser = unet.model.diffusion_model
    known = {layer: state for layer in denoiser.modules() if (state := acting(layer))}

    def look(*_: Any) -> None:
        changed = {layer: state for layer, before in known.items() if (state := acting(layer)) != before}
        known.update(changed)
        if changed:
            with aside(list(changed)):
                pass

    hook = denoiser.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def scheduled(p: Any) -> set[str]:
    """Paths of the LoRAs whose weight Neo's own script is to change within the pass ("LoRA Control")."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return {path for script in scripts if hasattr(script, "adjust_lora") for path in getattr(script, "mapping", ())}
