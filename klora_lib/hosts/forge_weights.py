"""How Forge stores a denoiser's weights: plain, fp8 with a separate scale, gguf or bitsandbytes blocks, streamed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine.merge import PLAIN
from ..engine.site import Packed
from .neo_online import read_online_state


def find_packing(module: nn.Module) -> Packed | None:
    """Why a layer's weight cannot be written in place, apart from its type; None if nothing prevents it.

    bitsandbytes packs a weight when it is first moved to the GPU.  In a streamed layer this happens during its first
    forward, and the parameter is replaced then.  Its quant_state has the shape.  The shape of gguf's parameter is that of
    the unpacked weight.

    Which LoRAs act at every forward is known only when a pass begins, and this function is called earlier.  Until then
    the layer has the LoRAs of the last job.  So a refusal does not mention them, and a weight that is not plain is refused
    because of its type alone.
    """
    weight: Any = module.weight
    shape = tuple(weight.shape)
    if hasattr(weight, "bnb_quantized"):
        state = weight.quant_state
        return Packed(f"bitsandbytes {weight.quant_type} weights", tuple(state.shape) if state is not None else shape)
    if hasattr(weight, "gguf_cls"):
        return Packed("gguf weights", shape)
    if hasattr(weight, "layout_cls"):
        return Packed(f"{type(weight).__name__} weights", shape)
    if getattr(module, "scale_weight", None) is not None:
        return Packed(f"{weight.dtype} weights with a scale", shape)
    online = "weight" in getattr(module, "forge_online_loras", ()) or read_online_state(module)
    if online and weight.dtype in PLAIN:
        return Packed(f"{weight.dtype} weights of a model that adds LoRAs at every forward", shape)
    return None


def read_weight(module: nn.Module, device: torch.device) -> Tensor:
    """The weight that the host computes with: unpacked, scaled, with the LoRAs that act at every forward; fp32."""
    from backend.operations import get_weight_and_bias

    wanted = {"device": device, "dtype": torch.float32}
    weight, _ = get_weight_and_bias(module, weight_args=wanted, weight_fn=find_unpacker(module.weight))
    return weight.detach()  # type: ignore[no-any-return]


def find_unpacker(weight: Any) -> Any:
    """The host's own function that unpacks this weight; None for a float tensor."""
    if hasattr(weight, "gguf_cls"):
        from backend.operations_gguf import dequantize_tensor

        return dequantize_tensor
    if hasattr(weight, "bnb_quantized"):
        from backend.operations_bnb import functional_dequantize_4bit

        return functional_dequantize_4bit
    if hasattr(weight, "layout_cls"):  # comfy-kitchen's, in Forge Neo
        return type(weight).dequantize
    return None


def is_readable(weight: Any) -> bool:
    """Whether ``read_weight`` can read it: it is plain, or there is a function that unpacks it."""
    return type(weight) in (Tensor, nn.Parameter) or find_unpacker(weight) is not None
