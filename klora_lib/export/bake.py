"""All that a plan lets act, as the tensors of one ordinary LoRA file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import PairError, SettingsError, format_count
from ..lora.build import build_delta
from ..lora.deltas import Delta, Lora, Norm, count_columns, widen
from ..lora.file import LoraFile
from ..lora.keys import make_natural_order, split_word
from ..rule.combiners import Acting
from ..rule.pairing import Pair, Unit
from ..rule.plan import Plan
from ..rule.selectors import CONTENT, STYLE
from .join import Product, Weighted, join_updates
from .names import SDXL, UNET, WORDS, choose_format, find_family, name_layers, name_module, name_text_module

ALPHA, UP, VECTORS = ".alpha", ".lora_up.weight", (".diff_b", ".w_norm", ".b_norm")  # ends of kohya's keys
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNEL = ("conv1", "conv2", "conv", "conv_in", "conv_out")  # layers of a UNet whose convolution is 3×3


@dataclass(frozen=True)
class Baked:
    """One LoRA: ``tensors`` under the keys of ``form``, and what the user should know of it, one sentence each."""

    tensors: Mapping[str, Tensor]
    form: str
    rank: int  # the largest of a layer
    notes: tuple[str, ...] = ()


@dataclass
class Layers:
    """The updates of one model part by layer, and what was lost of them."""

    products: dict[str, Lora] = field(default_factory=dict)
    lost: list[float] = field(default_factory=list)

    def add(self, layer: str, product: Product | None, shape: tuple[int, ...]) -> None:
        if product is None:
            return
        self.products[layer] = Lora(product.up, product.down, 1.0, shape)
        if product.lost:
            self.lost.append(product.lost)


def bake(
    pair: Pair, plan: Plan, masks: Tensor, weights: Sequence[tuple[float, float]], *,
    form: str | None = None, rank: int | None = None, precision: str | None = None, with_text: bool = True,
) -> Baked:  # fmt: skip
    """One LoRA that does what the pair does where ``masks`` say what acts.

    Args: masks: of the plan's units, uint8 [units].  weights: (text encoder, denoiser) of content and of style.
    form: "kohya" or "peft"; see names.choose_format if None.  rank: the most for a layer whose update has no two factors.
    precision: "fp32", "fp16" or "bf16"; if None, the files' own if it holds every number exactly, else fp32.
    with_text: whether with text encoders.
    Raises PairError for updates that depend on the model's weights, and for layers that have no name in the format;
    SettingsError for a precision that cannot hold the numbers.
    """
    refuse_dependent(pair)
    strengths = weights[0][1], weights[1][1]
    chosen = {acting.unit: choose(acting, mask) for acting, mask in zip(plan.acting(strengths), masks.tolist())}
    denoiser = Layers()
    for unit, updates in chosen.items():
        denoiser.add(unit.name, join_updates(updates, rank), find_kernel(unit))
    if not denoiser.products:
        raise PairError("nothing is left to save: every layer that acts is zero, or has the weight 0")
    family = find_family({unit.name: delta for unit in pair.units for delta in (unit.content, unit.style) if delta})
    texts = bake_texts((pair.content, pair.style), [te for te, _ in weights], rank)
    form = choose_format(family, form, texts.products)
    named = dict(name_layers(denoiser.products, family, form))
    if with_text:
        named |= {name_text_module(module, form): delta for module, delta in texts.products.items()}
    tensors = dict(write_modules(named, form))
    chosen |= {unit: choose(Acting(unit, strengths), plan.added_mask(unit)) for unit in pair.added}
    vectors = {unit: found for unit, updates in chosen.items() if (found := sum_vectors(updates))}
    tensors |= name_vectors(vectors, family, form, tensors)
    dtype = TYPES[precision] if precision else find_type(pair, tensors.values())
    tensors = {key: tensor if key.endswith(ALPHA) else tensor.to(dtype) for key, tensor in tensors.items()}
    refuse_overflow(tensors, precision)
    notes = [*describe_lost(denoiser.lost + texts.lost, len(denoiser.products) + len(texts.products))]
    notes += describe_vectors(tensors)
    return Baked(tensors, form, max(delta.rank for delta in named.values()), tuple(notes))


def choose(acting: Acting, mask: int) -> list[Weighted]:
    """The updates of one layer that act under a mask, with their weights."""
    unit, weights = acting
    each = ((CONTENT, unit.content, weights[0]), (STYLE, unit.style, weights[1]))
    return [(delta, weight) for bit, delta, weight in each if mask & bit and delta is not None]


def refuse_dependent(pair: Pair) -> None:
    for role, file in (("content", pair.content), ("style", pair.style)):
        for layer, delta in file.modules.items():
            if delta.asks_base or delta.relative:
                raise PairError(
                    f"{file.name!r} is a DoRA, GLoRA, OFT or IA3 in {layer}: what it changes depends on the model's "
                    "weights, so no ordinary LoRA does the same",
                    role,
                )


def find_kernel(unit: Unit) -> tuple[int, ...]:
    """The shape of the layer's weight, with its kernel where one of the files tells it, or the layer's name does."""
    shapes = [delta.shape for delta in (unit.content, unit.style) if delta is not None]
    shape = max(shapes, key=len)
    if len(shape) == 2 and unit.name.rpartition(".")[2] in KERNEL and shape[1] % 9 == 0:
        return shape[0], shape[1] // 9, 3, 3
    return shape


def sum_vectors(updates: Sequence[Weighted]) -> dict[str, Tensor]:
    """kohya's words for the weighted sums of norms and biases; empty if there are none."""
    known = [(delta, weight) for delta, weight in updates if weight]
    scales = [widen(d.weight) * weight for d, weight in known if isinstance(d, Norm) and d.weight is not None]
    biases = [widen(delta.bias) * weight for delta, weight in known if delta.bias is not None]
    if not scales:
        return {"diff_b": torch.stack(biases).sum(0)} if biases else {}
    scale = torch.stack(scales).sum(0)
    return {"w_norm": scale, "b_norm": torch.stack(biases).sum(0) if biases else torch.zeros_like(scale)}


def name_vectors(
    vectors: Mapping[Unit, Mapping[str, Tensor]], family: str, form: str, known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Keys and tensors of norms and biases.  ``known``: those of the other modules.

    AUTOMATIC1111 refuses a whole file for a module that it does not know, so a bias alone gets zeros beside it: the weight
    of a norm, or a module of rank 1 where the layer's size is known.
    Raises PairError where the format has no place for them.
    """
    if vectors and (form, family) not in (("kohya", UNET), ("kohya", SDXL)):
        told = f"norms or biases of {format_count(len(vectors), 'layer')}, {next(iter(vectors)).name} among them"
        raise PairError(f"the pair changes {told}, for which only kohya's format has a place, and only for UNets")
    out: dict[str, Tensor] = {}
    for unit, parts in vectors.items():
        module = name_module(unit.name, family)
        if "diff_b" in parts and f"{module}{UP}" not in known:
            if len(unit.shape) > 1:
                zero = torch.zeros(unit.shape[0], 1), torch.zeros(1, count_columns(unit.shape))
                out |= write_modules({module: Lora(*zero, 1.0, find_kernel(unit))}, form)
            elif "norm" in unit.name.rpartition(".")[2]:
                parts = {"w_norm": torch.zeros_like(parts["diff_b"]), "b_norm": parts["diff_b"]}
        out |= {f"{module}.{word}": tensor for word, tensor in parts.items()}
    return out


def describe_vectors(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Who does not read the norms and biases among ``tensors``."""
    vectors = [key.rpartition(".") for key in tensors if key.endswith(VECTORS)]
    biases = [module for module, _, word in vectors if word == "diff_b"]
    if biases:
        yield "the LoRA changes biases, which AUTOMATIC1111 does not read from a LoRA's file"
    if alone := [module for module in biases if f"{module}{UP}" not in tensors]:
        yield f"AUTOMATIC1111 refuses the file for a bias of a layer of which nothing else is known, {alone[0]}"
    if vectors:
        yield "the LoRA changes norms or biases, and diffusers refuses such a file"


# --- text encoders ---


def bake_texts(files: Sequence[LoraFile], weights: Sequence[float], rank: int | None) -> Layers:
    """The text-encoder parts of both files, added; by kohya's module."""
    each: dict[str, list[Weighted]] = {}
    for role, file, weight in zip(("content", "style"), files, weights):
        for module, delta in read_texts(file):
            if weight and (delta.asks_base or delta.relative):
                raise PairError(f"{file.name!r} is a DoRA or its like in {module}, which no ordinary LoRA can do", role)
            if weight and (delta.bias is not None or isinstance(delta, Norm)):
                raise PairError(f"{file.name!r} has a norm or bias in {module}, for which a LoRA's file has no place", role)
            each.setdefault(module, []).append((delta, weight))
    found = Layers()
    for module in sorted(each, key=make_natural_order):
        shapes = {(delta.shape[0], count_columns(delta.shape)) for delta, _ in each[module]}
        if len(shapes) > 1:
            told = " and ".join(f"{rows}×{columns}" for rows, columns in sorted(shapes))
            raise PairError(f"the two files are for different text encoders: {module} is {told}")
        found.add(module, join_updates(each[module], rank), each[module][0][0].shape)
    return found


def read_texts(file: LoraFile) -> Iterator[tuple[str, Delta]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.text.items():
        module, word = split_word(key) or (key, "")
        modules.setdefault(module, {})[word] = tensor
    for module, parts in modules.items():
        yield module, build_delta(module, parts)


# --- tensors ---


def find_type(pair: Pair, tensors: Iterable[Tensor]) -> torch.dtype:
    """The type of both files if it holds all of ``tensors`` without rounding, else fp32.  fp8 becomes fp16.

    fp16 does where the strengths are powers of two (weight 1, alpha = rank) and the method only adds.
    """
    stored = {
        tensor.dtype for file in (pair.content, pair.style) for d in file.modules.values() for tensor in find_tensors(d)
    }
    kinds = {torch.float16 if dtype.itemsize == 1 else dtype for dtype in stored}
    only = kinds.pop() if len(kinds) == 1 and kinds <= set(TYPES.values()) else torch.float32
    return only if all(torch.equal(tensor.to(only).float(), tensor) for tensor in tensors) else torch.float32


def find_tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a module, and in the modules of which it is made."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Delta):
        for each in vars(value).values():
            yield from find_tensors(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from find_tensors(each)


def write_modules(named: Mapping[str, Lora], form: str) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of all modules, each with alpha = rank; a file in PEFT's format says no alpha, which means the same.

    Modules of a lower rank than others are filled up with zeros, because diffusers scales modules whose rank or alpha is not
    that of the others wrongly, in either format.
    """
    up_word, down_word = WORDS[form]
    rank = max(delta.rank for delta in named.values())
    for module, delta in named.items():
        up, down = delta.up.new_zeros(len(delta.up), rank), delta.down.new_zeros(rank, delta.down.shape[1])
        up[:, : delta.rank], down[: delta.rank] = delta.up, delta.down
        kernel = delta.shape[1:] if len(delta.shape) == 4 else ()
        yield f"{module}.{up_word}", up.reshape(*up.shape, *([1, 1] if kernel else []))
        yield f"{module}.{down_word}", down.reshape(rank, *(kernel or down.shape[1:]))
        if form == "kohya":
            yield module + ALPHA, torch.tensor(float(rank))


def refuse_overflow(tensors: Mapping[str, Tensor], precision: str | None) -> None:
    bad = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        which = f"{format_count(len(bad), 'tensor')}, {bad[0]} among them"
        raise SettingsError(f"{precision or 'fp32'} cannot hold the numbers of {which}", "precision")


def describe_lost(lost: Sequence[float], layers: int) -> Iterator[str]:
    """What was not exact."""
    if lost:
        worst, mean = max(lost) ** 0.5, (sum(lost) / len(lost)) ** 0.5
        yield (
            f"{len(lost)} of {format_count(layers, 'layer')} have no two factors, and were brought to them by singular "
            f"vectors: {mean:.1%} of the change is lost there ({worst:.1%} in the worst), as ‖ΔW − saved‖ / ‖ΔW‖"
        )
