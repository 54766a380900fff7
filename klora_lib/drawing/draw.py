"""One call of a pipeline, with a clear sentence for every error."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ..devices import is_out_of_memory
from ..errors import HostError, KLoraError, quote_first_line


def draw_images(pipe: Any, block: AbstractContextManager[Any], **given: Any) -> tuple[list[Any], Any]:
    """Call the pipeline with the arguments ``given`` inside ``block``.  Returns the images and the value of the block.

    Raises a KLoraError, one sentence, for every error; its cause is the original exception.
    """
    try:
        with block as run:
            return list(pipe(**given).images), run
    except KLoraError:
        raise
    except Exception as e:  # noqa: BLE001  pipelines raise many types of exceptions
        if is_out_of_memory(e):
            raise HostError("there is not enough memory for this model and size", "size") from e
        raise HostError(f"the {type(pipe).__name__} cannot draw this: {quote_first_line(e)}") from e
