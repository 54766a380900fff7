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
from .contract import PutAside

DYNAMIC = "_dyn_"  # the attributes of such a layer begin with this
DRIFT = "this WebUI's LoRA loader has changed"


class OnlineLora(NamedTuple):
    """One LoRA that a layer adds to its output."""

    entry: Mapping[str, Any]  # the host's: "strength", which may change between steps, and "factor"
    dense: Callable[[], Tensor]  # ΔW without strength and factor, fp32, [out, in]

    @property
    def strength(self) -> float:
        return float(self.entry["strength"]) * float(self.entry["factor"])


def list_online_loras(layer: nn.Module) -> list[OnlineLora]:
    """The LoRAs that ``layer`` adds to its output.  Raises ValueError if it holds them in an unknown form."""
    held = {key: value for key, value in vars(layer).items() if key.startswith(DYNAMIC)}
    ups, down, diffs, krons = (held.pop(DYNAMIC + key, ()) for key in ("ups", "down", "diffs", "kron"))
    if held:
        raise ValueError(f"unknown: {min(held)}")
    found, first = [], 0
    for up, rank, entry in ups:
        found.append(OnlineLora(entry, make_product(up, down[first : first + rank])))
        first += rank
    found += [OnlineLora(entry, diff.float) for diff, entry in diffs]
    found += [OnlineLora(entry, make_kronecker(w1, w2)) for w1, w2, entry in krons]
    return found


def make_product(up: Tensor, down: Tensor) -> Callable[[], Tensor]:
    if up.shape[1] != down.shape[0]:  # [out, rank] @ [rank, in]
        raise ValueError(f"{tuple(up.shape)} @ {tuple(down.shape)}")
    return lambda: up.float() @ down.to(up.device).float()


def make_kronecker(w1: Tensor, w2: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.kron(w1.float(), w2.to(w1.device).float())


def apply_online_loras(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight that the layer computes with: ``weight`` (unpacked, fp32) with all online LoRAs.  Changes no argument."""
    for function in getattr(layer, "weight_function", ()):
        weight = function(weight.clone())  # the host's functions write into their argument
    for part in list_online_loras(layer):
        weight = weight + part.strength * part.dense().to(weight.device).reshape(weight.shape)
    return weight


def read_online_state(layer: nn.Module, name: str = "a layer") -> tuple[Any, ...]:
    """The LoRAs that the layer adds at every forward, each with its strength; () if there are none.

    Args: name: of the layer, for the message.
    Raises HostError if they are stored in an unknown form.
    """
    try:
        functions = getattr(layer, "weight_function", ())
        strengths = [(f, *(float(patch[0]) for patch in getattr(f, "patch", ()))) for f in functions]
        return (*strengths, *((id(part.entry), part.strength) for part in list_online_loras(layer)))
    except (TypeError, ValueError, LookupError, AttributeError) as e:
        raise HostError(f"{DRIFT}: K-LoRA cannot read the LoRAs that {name} adds at every forward ({e})") from None


def refuse_unknown(unet: Any) -> None:
    """Raise HostError if a patcher adds LoRAs at every forward, but they cannot be found on the layers.

    They are on the layers only after the patcher was loaded; before that they are in the patcher's list.
    """
    model = unet.model
    layers = model.diffusion_model.named_modules()
    found = [read_online_state(layer, name) or getattr(layer, "bias_function", ()) for name, layer in layers]
    if any(found) or not has_online_loras(unet):
        return
    loaded = getattr(model, "current_weight_patches_uuid", None)
    if loaded is not None and loaded == unet.patches_uuid:
        raise HostError(f"{DRIFT}: it adds LoRAs at every forward in a way that K-LoRA does not know")


def has_online_loras(unet: Any) -> bool:
    """Whether the patcher says that it adds LoRAs at every forward."""
    return hasattr(unet, "has_online_lora") and bool(unet.has_online_lora())


@contextmanager
def follow_strengths(unet: Any, put_aside: PutAside) -> Iterator[None]:
    """While open, a layer on which a strength has changed since the last forward is put aside once, so that its update is
    computed again.

    Neo's own script changes strengths between steps, and a DoRA of the pair depends on the layer's present weight.
    """
    if not has_online_loras(unet):
        yield
        return
    denoiser = unet.model.diffusion_model
    states = {layer: state for layer in denoiser.modules() if (state := read_online_state(layer))}

    def renew_changed(*_: Any) -> None:
        changed = {layer: state for layer, before in states.items() if (state := read_online_state(layer)) != before}
        states.update(changed)
        if changed:
            with put_aside(list(changed)):
                pass

    hook = denoiser.register_forward_pre_hook(renew_changed)
    try:
        yield
    finally:
        hook.remove()


def find_scheduled(p: Any) -> set[str]:
    """Paths of the LoRAs whose weight Neo's own script ("LoRA Control") will change during the pass."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return {path for script in scripts if hasattr(script, "adjust_lora") for path in getattr(script, "mapping", ())}
