"""Writing a file completely or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from uuid import uuid4


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` beside ``path``, then put it in the place of what is there.  Raises OSError; then all is as before."""
    partial = f"{os.fspath(path)}.{uuid4().hex}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # normally it was renamed, and is not there any more
            os.remove(partial)
