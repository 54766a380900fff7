"""How Forge keeps a denoiser's weights: plain, fp8 with a scale beside it, in blocks of gguf or bitsandbytes, streamed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine.merge import PLAIN
from ..engine.site import Packed
from .neo_online import acting


def packing(module: nn.Module) -> Packed | None:
    """What keeps us from writing a layer's weight in place, beside its type.

    bitsandbytes packs when a weight first meets the GPU: of a streamed layer that is within its first forward, and the
    parameter is replaced then.  Its quant_state knows the shape.  gguf's parameter answers with the shape of its numbers.

    Which LoRAs act at every forward is known only when a pass begins, and we are asked before: until then the layer
    carries those of the last job.  So a refusal speaks of none of them, and a weight that is not plain is refused by its
    type alone.
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
    online = "weight" in getattr(module, "forge_online_loras", ()) or acting(module)
    if online and weight.dtype in PLAIN:
        return Packed(f"{weight.dtype} weights of a model that adds LoRAs at every forward", shape)
    return None


def numbers(module: nn.Module, device: torch.device) -> Tensor:
    """The weight as the host computes with it: unpacked, scaled, under the LoRAs that act at every forward; fp32."""
    from backend.operations import get_weight_and_bias

    there = {"device": device, "dtype": torch.float32}
    weight, _ = get_weight_and_bias(module, weight_args=there, weight_fn=unpacker(module.weight))
    return weight.detach()  # type: ignore[no-any-return]


def unpacker(weight: Any) -> Any:
    """The host's own function from packed to numbers; None for a float tensor."""
    if hasattr(weight, "gguf_cls"):
        from backend.operations_gguf import dequantize_tensor

        return dequantize_tensor
    if hasattr(weight, "bnb_quantized"):
        from backend.operations_bnb import functional_dequantize_4bit

        return functional_dequantize_4bit
    if hasattr(weight, "layout_cls"):  # comfy-kitchen's, in Forge Neo
        return type(weight).dequantize
    return None


def readable(weight: Any) -> bool:
    """Whether ``numbers`` can read it: plain, or packed in a way that has an unpacker."""
    return type(weight) in (Tensor, nn.Parameter) or unpacker(weight) is not None
