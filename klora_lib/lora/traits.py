"""Whether two LoRAs without a common layer can be for one model, as far as the names and shapes of their layers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .deltas import Delta
from .keys import is_attention

KINDS = {  # first word of a layer: the denoisers that have it
    **dict.fromkeys(("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "time_embedding",
                     "add_embedding"), "a UNet"),
    **dict.fromkeys(("transformer_blocks", "single_transformer_blocks"), "a transformer like Flux or SD3"),
    **dict.fromkeys(("layers", "noise_refiner", "context_refiner"), "a transformer like Z-Image or Lumina"),
    **dict.fromkeys(("double_stream_blocks", "single_stream_blocks"), "a transformer like HiDream"),
    "blocks": "a transformer like Wan",
}  # fmt: skip
FROM_THE_TEXT = ("attn2.to_k", "attn2.to_v")  # of a UNet, as wide as what the text encoders give
CROSS = (".attn2.", ".cross_attn.")  # of a transformer: some are as wide as the text, others as the picture


def find_traits(layers: Mapping[str, Delta]) -> dict[str, set[object]]:
    """What a file's ``layers`` tell about its model: trait → values."""
    found: dict[str, set[object]] = {}
    for layer, delta in layers.items():
        for trait, value in read_traits(layer, delta.shape):
            found.setdefault(trait, set()).add(value)
    return found


def read_traits(layer: str, shape: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    first, _, rest = layer.partition(".")
    kind = KINDS.get(first)
    if kind is None:
        return
    yield "denoiser", kind
    if not is_attention(layer) or len(shape) < 2:
        return
    if kind != "a UNet":
        if not any(word in layer for word in CROSS):
            yield f"width of {first.replace('single_', 'double_' if 'stream' in first else '')}", shape[1]  # the same in all
    elif layer.endswith(FROM_THE_TEXT):
        yield "width of the text", shape[1]
    else:
        level = first if first == "mid_block" else f"{first}.{rest.partition('.')[0]}"
        yield f"width of {level}", shape[1]


def find_difference(one: Mapping[str, Delta], two: Mapping[str, Delta]) -> str | None:
    """The first trait in which two files differ; None if they may be for one model.

    Two files can be for two models even so.  Then the loaded model lacks layers of one of them, and that is reported.
    """
    of_one, of_two = find_traits(one), find_traits(two)
    for trait in of_one:
        if trait in of_two and of_one[trait].isdisjoint(of_two[trait]):
            return f"the {trait} is {format_values(of_one[trait])} and {format_values(of_two[trait])}"
    return None


def format_values(values: set[object]) -> str:
    return " or ".join(sorted(map(str, values)))
