"""Writing what a command makes: whole files, or none."""

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


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """All of ``data`` at ``path``, or nothing there."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError as e:
        raise SettingsError(f"{os.fspath(path)!r} cannot be written: {e.strerror}") from None
    finally:
        with suppress(OSError):  # long since in its place
            os.remove(partial)


def encode_png(picture: Image.Image, parameters: str = "") -> bytes:
    """A PNG, with ``parameters`` in the text chunk of that name, where WebUIs write and look for an image's making."""
    chunk = PngInfo()
    if parameters:
        chunk.add_text("parameters", parameters)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunk)
    return buffer.getvalue()


@contextmanager
def open_folder(path: str) -> Iterator[Path]:
    """The folder at ``path``, there and writable; made where it is missing, and gone again if nothing came into it."""
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
            with suppress(OSError):  # not empty: it is to stay
                each.rmdir()
