"""Makes the Delta of one module from its tensors: finds its type, checks the shapes, reads the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import LoraFileError
from .deltas import Delta, Dora, Full, Lora, Norm, count_columns, fuse_parts, widen
from .lycoris import Glora, Loha, Lokr, fold_core
from .misfit import Misfit, format_shape, format_size
from .multiplied import Scaled, Turned, build_multiplied, build_oft_blocks

Parts = Mapping[str, Tensor]

COMMON = frozenset({"alpha", "scale", "dora_scale", "lora_magnitude_vector", "diff_b"})
MULTIPLIED = {  # see multiplied.FORMS
    "OFT": frozenset({"oft_blocks", "rescale"}),
    "OFT of LyCORIS 2": frozenset({"oft_diag"}),
    "OFT 2": frozenset({"oft_R", "scaled_oft", "neumann_terms", "coft"}),
    "BOFT of PEFT": frozenset({"boft_R", "boft_s"}),
    "IA3": frozenset({"weight", "on_input"}),
    "IA3 of PEFT": frozenset({"ia3_l", "on_input"}),
}
WORDS: dict[str, frozenset[str]] = {
    "LoRA": frozenset({"lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_up.bias"}),
    "LoHa": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}),
    "LoKr": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    "GLoRA": frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"}),
    "full": frozenset({"diff"}),
    "norm": frozenset({"w_norm", "b_norm"}),
    **MULTIPLIED,
}
SCALARS = ("alpha", "scale")
SWITCHES = ("on_input", "scaled_oft", "neumann_terms", "coft")  # one number each, and may be a whole one
SPLIT = "oft_blocks."  # kohya's OFT of a fused projection of Flux: oft_blocks.0, .1, …, a part each


def find_type(parts: Parts) -> str | None:
    """The module's type ("LoRA", "LoHa", …, "bias"); None if a word belongs to no type, or the words to two."""
    own = parts.keys() - COMMON
    if not own:
        return "bias" if parts.keys() <= {"diff_b", *SCALARS} else None
    if own == {"weight"}:  # a layer of a model, not of a LoRA
        return None
    if all(word.startswith(SPLIT) for word in own):
        return "split OFT"
    return next((name for name, words in WORDS.items() if own <= words), None)


def name_unread_type(parts: Parts) -> str:
    """What to call a type we do not read: its name where it is known, else its words."""
    if "lambda_layer" in parts:
        return "T-LoRA"
    return " + ".join(sorted(parts.keys() - COMMON) or sorted(parts))


def build_delta(layer: str, parts: Parts) -> Delta:
    """The Delta of one module.

    Args: parts: tensors by normalised word (`lora_up.weight`, `alpha`, `hada_w1_a`, …), see keys.parse_key.
    Raises LoraFileError, one sentence that begins with the layer, if a tensor is missing or does not fit.
    """
    type_name = find_type(parts)
    try:
        if type_name is None and layer.endswith(".base_layer"):
            raise Misfit("is trained itself, beside PEFT's adapter (bias='lora_only' or the like), which is not read")
        if type_name is None:
            raise Misfit(f"is of a type that is not read ({name_unread_type(parts)})")
        for word, tensor in parts.items():
            check_tensor(word, tensor)
        delta = BUILDERS[type_name](parts)
        return add_magnitude(delta, parts)
    except Misfit as fact:
        raise LoraFileError(f"{layer} {fact}") from None


def check_tensor(word: str, tensor: Tensor) -> None:
    """Raises Misfit for an empty tensor, NaN or infinity, integers, and an alpha that is not one number."""
    if tensor.numel() == 0:
        raise Misfit(f"has an empty {word} ({format_size(tensor)})")
    if word in (*SCALARS, *SWITCHES) and tensor.numel() != 1:
        raise Misfit(f"has {tensor.numel()} numbers as {word} where one is expected")
    if word not in (*SCALARS, *SWITCHES) and not tensor.is_floating_point():
        raise Misfit(f"stores {word} as {str(tensor.dtype).removeprefix('torch.')}, not as floating-point numbers")
    if not is_finite(tensor):
        raise Misfit(f"has NaN or infinity in {word}")


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite, also as fp32.

    A sum that is finite has only finite terms, and is ten times as fast as a look at each; one that is not may be too large.
    """
    wide = widen(tensor)
    return math.isfinite(float(wide.sum())) or bool(torch.isfinite(wide).all())


# --- reading single tensors ---


def require_tensors(parts: Parts, *words: str) -> list[Tensor]:
    """The tensors of these words.  Raises Misfit if one is missing."""
    missing = [word for word in words if word not in parts]
    if missing:
        there = [word for word in parts if word not in COMMON]
        raise Misfit(f"has {' and '.join(there)} but no {' or '.join(missing)}")
    return [require_matrix(parts, word) for word in words]


def require_matrix(parts: Parts, word: str) -> Tensor:
    if parts[word].dim() not in (2, 4):
        dims, size = parts[word].dim(), format_size(parts[word])
        raise Misfit(f"has a {word} of {dims} dimensions ({size}) where 2 or 4 are expected")
    return parts[word]


def flatten_pointwise(word: str, tensor: Tensor) -> Tensor:
    """[a, b] of a matrix, or of a 1×1 convolution."""
    if count_columns(tensor.shape) != tensor.shape[1]:
        raise Misfit(f"has a kernel in {word} ({format_size(tensor)}), which must be 1×1")
    return tensor.reshape(tensor.shape[0], -1)


def require_fit(parts: Parts, one: str, two: str, ok: bool) -> None:
    if not ok:
        raise Misfit(f"has shapes that do not fit: {one} is {format_size(parts[one])}, {two} is {format_size(parts[two])}")


def read_scale(parts: Parts, dim: int | None) -> float:
    """`scale` where the file has it; else alpha/dim; 1 without alpha or without a dim."""
    if "scale" in parts:
        return float(parts["scale"].to(torch.float64))
    if "alpha" in parts and dim:
        return float(parts["alpha"].to(torch.float64)) / dim
    return 1.0


def read_bias(parts: Parts, out: int, word: str = "diff_b", scale: float = 1.0) -> Tensor | None:
    """fp32 [out], or None."""
    if word not in parts:
        return None
    bias = parts[word]
    if bias.dim() != 1 or bias.shape[0] != out:
        raise Misfit(f"has a {word} of {format_size(bias)} for {out} outputs")
    return widen(bias) * scale


def read_factors(parts: Parts, up: str, down: str, core: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """(up [out, rank], down [rank, in·kh·kw], ΔW's shape) of LoRA, or of LoRA with a CP core folded into down."""
    a, b = require_tensors(parts, up, down)
    if core not in parts:
        rows = flatten_pointwise(up, a)  # [out, rank]
        require_fit(parts, up, down, rows.shape[1] == b.shape[0])
        return rows, b.reshape(b.shape[0], -1), (rows.shape[0], *b.shape[1:])
    rows, b, t = flatten_pointwise(up, a), flatten_pointwise(down, b), read_core(parts, core)
    require_fit(parts, up, core, rows.shape[1] == t.shape[0])
    require_fit(parts, core, down, t.shape[1] == b.shape[0])
    return rows, fold_core(t, b), (rows.shape[0], b.shape[1], *t.shape[2:])


def read_core(parts: Parts, word: str) -> Tensor:
    if parts[word].dim() != 4:
        raise Misfit(f"has a {word} of {parts[word].dim()} dimensions ({format_size(parts[word])}) where 4 are expected")
    return parts[word]


# --- one builder a type ---


def build_lora(parts: Parts) -> Delta:
    up, down, shape = read_factors(parts, "lora_up.weight", "lora_down.weight", "lora_mid.weight")
    scale = read_scale(parts, down.shape[0])
    own, factors = read_bias(parts, up.shape[0]), read_bias(parts, up.shape[0], "lora_up.bias", scale)
    bias = own + factors if own is not None and factors is not None else own if factors is None else factors
    return Lora(up, down, scale, shape, bias)


def build_loha(parts: Parts) -> Delta:
    require_tensors(parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if ("hada_t1" in parts) != ("hada_t2" in parts):
        raise Misfit("has one of hada_t1 and hada_t2 without the other")
    cores = "hada_t1" in parts  # which have the ups as [rank, out]
    turned = {word: t.T if cores and word.endswith("_a") and t.dim() == 2 else t for word, t in parts.items()}
    up1, down1, shape = read_factors(turned, "hada_w1_a", "hada_w1_b", "hada_t1")
    up2, down2, other = read_factors(turned, "hada_w2_a", "hada_w2_b", "hada_t2")
    require_fit(parts, "hada_w1_a", "hada_w2_a", shape[0] == other[0])
    require_fit(parts, "hada_w1_b", "hada_w2_b", count_columns(shape) == count_columns(other))
    return Loha(up1, down1, up2, down2, read_scale(parts, down1.shape[0]), shape, read_bias(parts, shape[0]))


def build_lokr(parts: Parts) -> Delta:
    w1, shape1 = read_lokr_factor(parts, "lokr_w1")
    w2, shape2 = read_lokr_factor(parts, "lokr_w2")
    if len(shape1) == 4 and count_columns(shape1) != shape1[1]:
        raise Misfit("has a kernel in lokr_w1, which must be a matrix")
    split = w2 if len(w2) == 2 else w1
    dim = split[1].shape[0] if len(split) == 2 else None
    shape = shape1[0] * shape2[0], shape1[1] * shape2[1], *shape2[2:]
    rank = dim or min(w1[0].shape) * min(w2[0].shape)
    return Lokr(w1, w2, read_scale(parts, dim), rank, shape, read_bias(parts, shape[0]))


def read_lokr_factor(parts: Parts, name: str) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """((whole,) or (a, b), the factor's shape); `name`_a is [rank, rows] where there is a CP core, `lokr_t2`."""
    if name in parts:
        whole = require_matrix(parts, name)
        return (whole.reshape(whole.shape[0], -1),), tuple(whole.shape)
    a, b, core = f"{name}_a", f"{name}_b", name.replace("w", "t")
    require_tensors(parts, a, b)
    turned = {**parts, a: parts[a].T} if core in parts and parts[a].dim() == 2 else parts
    up, down, shape = read_factors(turned, a, b, core)
    return (up, down), shape


def build_glora(parts: Parts) -> Delta:
    a1, a2, b1, b2 = require_tensors(parts, "a1.weight", "a2.weight", "b1.weight", "b2.weight")
    del b1, b2
    old = a1.shape[0] < a2.shape[0]  # the first writers had a1: [rank, in], a2: [in, rank], and b1, b2 likewise
    one, two = ("2.weight", "1.weight") if old else ("1.weight", "2.weight")
    a_up, a_down, _ = read_factors(parts, "a" + one, "a" + two, "")
    b_up, b_down, shape = read_factors(parts, "b" + one, "b" + two, "bm.weight")
    require_fit(parts, "a" + one, "a" + two, a_up.shape[0] == a_down.shape[1])
    require_fit(parts, "a" + one, "b" + two, a_up.shape[0] == shape[1])
    return Glora(a_up, a_down, b_up, b_down, read_scale(parts, b_down.shape[0]), shape, read_bias(parts, shape[0]))


def build_full(parts: Parts) -> Delta:
    scale = read_scale(parts, None)
    diff = parts["diff"]
    if diff.dim() == 1:
        return Norm(widen(diff) * scale, read_bias(parts, diff.shape[0]))
    require_matrix(parts, "diff")
    return Full(diff.reshape(diff.shape[0], -1), scale, tuple(diff.shape), read_bias(parts, diff.shape[0]))


def build_norm(parts: Parts) -> Delta:
    for word in ("w_norm", "b_norm"):
        if word in parts and parts[word].dim() != 1:
            raise Misfit(f"has a {word} of {parts[word].dim()} dimensions ({format_size(parts[word])}) where 1 is expected")
    if "w_norm" in parts and "b_norm" in parts:
        require_fit(parts, "w_norm", "b_norm", parts["w_norm"].shape == parts["b_norm"].shape)
    weight, bias = (widen(parts[word]) if word in parts else None for word in ("w_norm", "b_norm"))
    return Norm(weight, bias)


def build_lone_bias(parts: Parts) -> Delta:
    if "diff_b" not in parts:
        raise Misfit(f"has {' and '.join(parts)} but no weights")
    return Norm(None, read_bias(parts, parts["diff_b"].numel()))


def build_relative(parts: Parts) -> Turned | Scaled:
    delta = build_multiplied(parts)
    return replace(delta, bias=read_bias(parts, delta.shape[0] or parts["diff_b"].numel())) if "diff_b" in parts else delta


def build_split_oft(parts: Parts) -> Delta:
    """One OFT for each of the projections that a Flux layer fuses."""
    words = [f"{SPLIT}{i}" for i in range(len([word for word in parts if word.startswith(SPLIT)]))]
    if missing := [word for word in words if word not in parts]:
        raise Misfit(f"has parts of an OFT but no {' or '.join(missing)}")
    if "diff_b" in parts:
        raise Misfit("has a diff_b, which is not read together with the parts of an OFT")
    common = {word: tensor for word, tensor in parts.items() if not word.startswith(SPLIT)}
    deltas = [build_oft_blocks({**common, "oft_blocks": parts[word]}) for word in words]
    return fuse_parts(deltas, [delta.shape[0] for delta in deltas])


BUILDERS: dict[str, Callable[[Parts], Delta]] = {
    "LoRA": build_lora, "LoHa": build_loha, "LoKr": build_lokr, "GLoRA": build_glora, "full": build_full,
    "norm": build_norm, "bias": build_lone_bias,
    "split OFT": build_split_oft, **dict.fromkeys(MULTIPLIED, build_relative),
}  # fmt: skip


def add_magnitude(delta: Delta, parts: Parts) -> Delta:
    """`delta`, or a DoRA around it if the file has a magnitude: [out, 1] by row, [1, in] by input channel."""
    word = next((word for word in ("dora_scale", "lora_magnitude_vector") if word in parts), None)
    if word is None:
        return delta
    if delta.relative:
        raise Misfit(f"has a {word}, which is not read together with {find_type(parts)}")
    magnitude, shape = parts[word], delta.shape
    if len(shape) < 2:
        raise Misfit(f"has a {word}, which a norm or a bias cannot have")
    if magnitude.dim() == 0:
        raise Misfit(f"has one number as {word}")
    if magnitude.numel() == shape[0] and (word == "lora_magnitude_vector" or magnitude.shape[0] == shape[0]):
        return Dora(delta, magnitude.reshape(-1, 1))  # PEFT writes [out], and [1, out, 1, 1] for convolutions
    flat_kernel = magnitude.dim() == 4 and len(shape) == 2 and shape[1] % magnitude.numel() == 0
    if magnitude.shape[0] == 1 and (magnitude.numel() == shape[1] or flat_kernel):
        return Dora(delta, magnitude.reshape(1, -1))
    raise Misfit(f"has a {word} of {format_size(magnitude)}, which fits neither rows nor columns of {format_shape(shape)}")
