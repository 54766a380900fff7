"""One call of a pipeline, and a sentence for whatever it raises."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..devices import out_of_memory
from ..errors import HostError, KLoraError, first_line


def draw(pipe: Any, block: AbstractContextManager[Any], **given: Any) -> tuple[list[Any], Any]:
    """The pipeline's images for the arguments ``given``, drawn inside ``block``, and what the block is as.

    Raises a KLoraError, one sentence, whatever goes wrong; its cause is what was raised.
    """
    try:
        with block as run:
            return list(pipe(**given).images), run
    except KLoraError:
        raise
    except Exception as e:  # noqa: BLE001  a pipeline raises all kinds for what it was not made for
        if out_of_memory(e):
            raise HostError("there is not enough memory for this model and size", "size") from e
        raise HostError(f"the {type(pipe).__name__} cannot draw this: {first_line(e)}") from e
