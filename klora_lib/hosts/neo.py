"""Forge Neo: a Forge whose patches do not name the file they came from.

The way it stores LoRAs has changed four times (patches with a flag, wrappers of a layer's weight, its own schedule of
these, matrices that a layer adds to its output).  But it has always had one function that loads all of them, and writes
into ``current_lora_hash`` what it loaded.  To leave the pair out, we have that function load the other LoRAs again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import HostError
from ..late import Late
from . import forge
from .forge_weights import find_packing, find_unpacker, is_readable
from .forges import Forges, read_loaded_loras
from .neo_online import apply_online_loras, find_scheduled, follow_strengths, refuse_unknown

if TYPE_CHECKING:
    from ..engine import layers
    from ..engine.site import Site
    from .contract import PutAside, TextPart
else:
    layers = Late("klora_lib.engine.layers")

NAME = "Forge Neo"


def find_missing() -> list[str]:
    """What this WebUI lacks of this family."""
    missing = [what for what in forge.find_missing() if what != forge.REFRESH]
    patcher = forge.find_model_patcher()
    missing += [f"ModelPatcher.{name}" for name in ("add_patches", "clone") if not hasattr(patcher, name)]
    if hasattr(patcher, "refresh_loras"):
        missing.append("patches that do not tell their file")  # Forge's do
    return missing


def make_host() -> Neo:
    return Neo(sys.modules["networks"])


class Neo(Forges):
    """Fulfils ``contract.Host``."""

    name = NAME
    reload_function = forge.Forge.reload_function

    def find_sites(self) -> Mapping[str, Site]:
        unet = self.get_model().forge_objects.unet
        denoiser = unet.model.diffusion_model
        refuse_packed(denoiser)
        refuse_unknown(unet)
        return layers.list_sites(denoiser, partial(read_weight, device=self.get_device()), find_packing)

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart], keep: bool = True) -> None:
        """Leave the pair out of what the host has loaded, and add its text part to clones of the text encoders.

        If this changes anything, the hash with which the host remembers what is loaded is changed too.
        """
        parts, model = list(parts), self.get_model()
        if changing := [part.entry.name for part in parts if part.entry.path in find_scheduled(p)]:
            raise HostError(f"the prompt schedules the weight of {changing[0]!r} over the steps; K-LoRA does that")
        changed = self.leave_out({part.entry.path for part in parts})
        after = model.forge_objects_after_applying_lora
        for part in parts:
            if part.file.text:  # the loader requires a denoiser too; nothing is added to it
                text, name = dict(part.file.text), f"{part.entry.path} (K-LoRA text encoder)"
                _, after.clip = self.networks.load_lora_for_models(
                    after.unet, after.clip, text, 0.0, part.te, filename=name, **self.read_online_mode()
                )
                changed = True
        if changed:
            model.forge_objects.unet, model.forge_objects.clip = after.unet, after.clip
            model.current_lora_hash = f"K-LoRA {id(p)} {model.current_lora_hash}"
        self.key_prompt_cache(network_data, parts)
        self.add_hashes(p, parts)

    def leave_out(self, paths: set[str]) -> bool:
        """Have the host load its LoRAs again without the files at ``paths``.  Returns False if none of these is loaded."""
        loaded = read_loaded_loras(self.get_model())
        if not any(path in paths for path, *_ in loaded):
            return False
        names = {net.network_on_disk.filename: net.mentioned_name for net in self.networks.loaded_networks}
        others = [load for load in loaded if load[0] not in paths]
        if unknown := [path for path, *_ in others if path not in names]:
            raise HostError(f"this WebUI's LoRA loader has changed: it lists {unknown[0]!r}, but not by what name it came")
        rest = [(names[path], te, unet) for path, unet, te in others]
        self.networks.load_networks(*([column[i] for column in rest] for i in range(3)))
        if any(path in paths for path, *_ in read_loaded_loras(self.get_model())):
            raise HostError("this WebUI's LoRA loader has changed: it loads the pair though it was not asked to")
        return True

    def read_online_mode(self) -> dict[str, bool]:
        """The argument that has the host's loader add a LoRA at every forward ("on-the-fly"), if the user chose that.

        The host cannot merge a LoRA into packed weights (gguf).
        """
        if "online_mode" not in inspect.signature(self.networks.load_lora_for_models).parameters:
            return {}
        settings = getattr(sys.modules.get("backend.args"), "dynamic_args", None)
        return {"online_mode": bool(getattr(settings, "online_lora", False))}

    @contextmanager
    def wrap_rewrites(self, put_aside: PutAside) -> Iterator[None]:
        with super().wrap_rewrites(put_aside), follow_strengths(self.get_model().forge_objects.unet, put_aside):
            yield

    @contextmanager
    def watch_refiner(self, p: Any, act: Callable[[], None]) -> Iterator[None]:
        from modules import shared

        if getattr(p, "refiner_checkpoint_info", None) is not None and getattr(shared.opts, "refiner_fast_sd", False):
            raise HostError("the option 'Reload \"state_dict\" Only' writes the refiner over the layers of the pair")
        with super().watch_refiner(p, act):
            yield


def read_weight(module: nn.Module, device: torch.device) -> Tensor:
    """The weight that the host computes with: unpacked, with the LoRAs that act at every forward; fp32."""
    weight: Any = module.weight.to(device)  # type: ignore[operator,union-attr]
    unpack = find_layer_unpacker(module, weight)
    weight = (unpack(weight) if unpack else weight).detach().float()
    return apply_online_loras(module, weight).detach()


def find_layer_unpacker(module: nn.Module, weight: Any) -> Any:
    """The host's function that unpacks this weight, which may be a method of the layer; None if there is none."""
    return find_unpacker(weight) or getattr(module, "convert_weight", None)


def refuse_packed(denoiser: nn.Module) -> None:
    """Raise HostError for a model whose weights K-LoRA can neither write nor add to."""
    modules = list(denoiser.named_modules())
    if hasattr(denoiser, "loras") or any(hasattr(module, "qweight") for _, module in modules):
        raise HostError("this is a Nunchaku (SVDQuant) model, whose fused 4-bit layers take no LoRA of ours")
    for name, module in modules:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            refuse_weight(name, module, weight)
        if FUSED in getattr(getattr(type(module).forward, "__code__", None), "co_names", ()):
            refuse_fused(name, module)


def refuse_weight(name: str, module: nn.Module, weight: Any) -> None:
    if hasattr(weight, "gguf_cls"):  # gguf's Q8_0 is int8 too, but can be read
        return
    if type(weight) in (Tensor, nn.Parameter) and not weight.is_floating_point():
        raise HostError(f"the model's weights are {str(weight.dtype).removeprefix('torch.')} ({name}), of which K-LoRA "
                        "does not know the scale")  # fmt: skip
    if not is_readable(weight) and find_layer_unpacker(module, weight) is None:
        raise HostError(f"the model's weights are packed as {type(weight).__name__} ({name}), which K-LoRA cannot read")


FUSED = "linear_input_act"  # the host's function that computes an activation and the layer after it together


def refuse_fused(name: str, block: nn.Module) -> None:
    """Raise HostError if FUSED uses a layer's weight without calling the layer: with int8 weights or fp16 accumulation."""
    try:
        fast = torch.backends.cuda.matmul.allow_fp16_accumulation
    except (AttributeError, AssertionError):  # older versions of torch
        fast = False
    for child, layer in block.named_children():
        if fast or getattr(getattr(layer, "weight", None), "storage_dtype", None) == torch.int8:
            how = "in fp16 accumulation" if fast else "in int8"
            raise HostError(f"{name}.{child} is computed {how} together with an activation, where K-LoRA cannot add to it")
