"""One module per weight.  Files written for two programs can have a layer twice: under two names, or fused and in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..devices import find_tensors
from ..errors import PairError
from .build import find_type
from .deltas import Delta, Norm
from .keys import list_members
from .lycoris import Glora
from .rows import cut_rows, find_heights

Parts = dict[str, Tensor]
ROUNDING = 0.01  # of a norm: two writers of one module round to bf16 at different places


def join_spellings(spellings: Mapping[str, Parts]) -> Mapping[str, Parts]:
    """A layer's tensors by the file's name of the module.  Two names that together have one module's tensors become one."""
    together = {word: tensor for parts in spellings.values() for word, tensor in parts.items()}
    if len(spellings) > 1 and (len(together) < sum(map(len, spellings.values())) or find_type(together) is None):
        return spellings
    return {next(iter(spellings)): together}


def drop_repeats(modules: Iterable[tuple[str, str, Delta]]) -> tuple[dict[str, Delta], list[str]]:
    """(layer -> its module, errors).

    Of equal modules one is kept.  A member of a fused layer is left out if it is zero or equal to the layer's rows.

    Args: modules: (layer, the module as the file writes it, Delta).
    """
    deltas: dict[str, Delta] = {}
    names: dict[str, str] = {}
    wrong: list[str] = []
    for layer, name, delta in modules:
        if layer in deltas and not act_alike(deltas[layer], delta):
            wrong.append(f"{layer} is in it twice, as {names[layer]} and as {name}, and the two differ")
        deltas.setdefault(layer, delta)
        names.setdefault(layer, name)
    for whole in [layer for layer in deltas if list_members(layer)]:
        parts = {name: deltas[name] for name in list_members(whole) if name in deltas}
        if not parts:
            continue
        if is_placeholder(deltas[whole]):
            del deltas[whole]
            continue
        rows = find_member_rows(whole, parts, deltas[whole])
        for name, part in parts.items():
            if is_placeholder(part) or (name in rows and is_repeat(part, deltas[whole], rows[name])):
                del deltas[name]
            else:
                wrong.append(f"{whole} is in it whole, and differs from {name}, which is a part of it")
    return deltas, wrong


def find_member_rows(whole: str, parts: Mapping[str, Delta], fused: Delta) -> dict[str, tuple[int, int]]:
    """Member -> its rows [first, last) of the fused layer; empty if the members' rows do not add up."""
    total, names = fused.shape[0], list_members(whole)
    if len(fused.shape) == 1:  # a bias alone: nothing tells how wide the layer is
        return {}
    tall = find_heights([parts.get(name) for name in names], total, fused.shape[1])
    if sum(tall) != total or min(tall) < 1:
        return {}
    return dict(zip(names, pairwise([0, *accumulate(tall)])))


def is_repeat(part: Delta, whole: Delta, rows: tuple[int, int]) -> bool:
    """Whether ``part`` changes these rows as ``whole`` does."""
    try:
        same = cut_rows(whole, *rows)
    except PairError:
        return False
    return same is not None and act_alike(part, same)


def is_placeholder(delta: Delta) -> bool:
    """Whether ΔW and the bias are zero; a DoRA's magnitude does not matter."""
    if delta.relative:  # no program writes such placeholders
        return False
    if isinstance(delta, Glora) and delta.a_up.any() and delta.a_down.any():  # which W·A makes an update of
        return False
    return not delta.dense().any() and (delta.bias is None or not delta.bias.any())


def act_alike(one: Delta, other: Delta) -> bool:
    """Whether both change a random weight in the same way: DoRA and GLoRA depend on the weight."""
    if (isinstance(one, Norm), flatten_shape(one)) != (isinstance(other, Norm), flatten_shape(other)):
        return False
    if one.relative or other.relative:  # their shapes do not tell of which weight
        both = list(find_tensors(one)), list(find_tensors(other))
        return type(one) is type(other) and len(both[0]) == len(both[1]) and all(map(torch.equal, *both))
    base = torch.randn(flatten_shape(one), generator=torch.Generator().manual_seed(0))
    return are_close(one.update(base.clone()), other.update(base)) and are_close(widen_bias(one), widen_bias(other))


def flatten_shape(delta: Delta) -> tuple[int, int]:
    """[out, in·kh·kw]."""
    columns = 1
    for n in delta.shape[1:]:
        columns *= n
    return delta.shape[0], columns


def widen_bias(delta: Delta) -> Tensor:
    return torch.zeros(delta.shape[0]) if delta.bias is None else delta.bias.float()


def are_close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) <= ROUNDING * max(float(one.norm()), float(other.norm()))
