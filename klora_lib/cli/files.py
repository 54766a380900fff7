"""Writing a command's results: a file is written completely, or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import SettingsError
from ..writing import write_whole


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, completely or not at all.  Raises SettingsError if it cannot be written."""
    try:
        write_whole(path, data)
    except OSError as e:
        raise SettingsError(f"{os.fspath(path)!r} cannot be written: {e.strerror}") from None


def encode_png(picture: Image.Image, parameters: str = "") -> bytes:
    """A PNG with the infotext ``parameters`` in the text chunk of that name, as WebUIs write and read it."""
    chunk = PngInfo()
    if parameters:
        chunk.add_text("parameters", parameters)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunk)
    return buffer.getvalue()


def encode_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
    return buffer.getvalue()


@contextmanager
def open_folder(path: str) -> Iterator[Path]:
    """The folder at ``path``.  It is made if it is missing, and removed again at the end if it is empty.

    Raises SettingsError if nothing can be written into it.
    """
    out = Path(path)
    made: list[Path] = []
    try:
        try:
            made += [each for each in (out, *out.parents) if not each.exists()]
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out) as probe:
                probe.write(b"\0")
        except OSError as e:
            raise SettingsError(f"{path!r} cannot be written to: {e.strerror}", "out") from None
        yield out
    finally:
        for each in made:
            with suppress(OSError):  # raised if the folder is not empty; then it stays
                each.rmdir()
