"""A safetensors file: its bytes, read once, as tensors."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from ..errors import LoraFileError, format_count, list_offenders

DISGUISES = {b"PK": "a pickle", b"\x80": "a pickle", b"version https://git-lfs": "a Git LFS pointer"}


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


Bytes = bytearray | mmap.mmap  # that can be written, as torch asks for
PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows needs no word for it


def read_bytes(path: Path) -> Bytes:
    """The file's bytes, once: the tensors are views of them.

    A bytearray would first be filled with zeros, which takes as long as reading.  The file itself is not mapped: whoever
    overwrites it would change our numbers.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return bytearray()
        data = mmap.mmap(-1, size, **PRIVATE)
        with memoryview(data) as view:
            filled = file.readinto(view)
    return bytearray(data[:filled]) if filled < size else data


def parse_tensors(path: Path, data: Bytes, name: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors, as views of ``data``, and the metadata of a safetensors file.  Raises LoraFileError if it is none."""
    if not data:
        raise LoraFileError(f"{name!r} is an empty file")
    header, metadata = read_header(data, name)
    empty = [key for key, entry in header.items() if 0 in entry.shape]
    if empty:
        raise LoraFileError(f"{name!r} holds {format_count(len(empty), 'empty tensor')}: {list_offenders(empty)}")
    try:
        with safetensors.safe_open(path, "pt"):  # the library's own look at the file: nothing overlaps, nothing is missing
            pass
        return {key: entry.view(data) for key, entry in header.items()}, metadata
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise LoraFileError(f"{name!r} is truncated or damaged ({reason})") from None


class Entry(NamedTuple):
    """One tensor of the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int  # byte of the file

    def view(self, data: Bytes) -> Tensor:
        """The tensor: a view of ``data`` if its numbers are aligned there, else a copy."""
        if self.dtype not in DTYPES:
            raise ValueError(f"numbers of type {self.dtype}")
        dtype, numel = DTYPES[self.dtype], math.prod(self.shape)
        if self.first % dtype.itemsize:
            data, first = bytearray(data[self.first : self.first + numel * dtype.itemsize]), 0
        else:
            first = self.first
        return torch.frombuffer(data, dtype=dtype, count=numel, offset=first).view(self.shape)


def read_header(data: Bytes, name: str) -> tuple[dict[str, Entry], Mapping[str, str]]:
    """(tensor name -> its entry, metadata), from the JSON at the beginning of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length] if 8 + length <= len(data) else b"")
        metadata = dict(header.pop("__metadata__", None) or {})
        return {key: read_entry(entry, 8 + length) for key, entry in header.items()}, metadata
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        # only now: a sound file may begin with any of these bytes, they are its header's length
        for start, what in DISGUISES.items():
            if data[: len(start)] == start:
                raise LoraFileError(
                    f"{name!r} is {what} under the name .safetensors: convert or download it again"
                ) from None
        raise LoraFileError(
            f"{name!r} is truncated or not a safetensors file ({format_count(len(data), 'byte')}, no readable header)"
        ) from None


def read_entry(given: Any, start: int) -> Entry:
    """Raises ValueError, TypeError, KeyError or IndexError: anything may stand there, and users are shown some of it."""
    dtype, shape, first = given["dtype"], given["shape"], given["data_offsets"][0]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("not a tensor's entry")
    if any(type(number) is not int or number < 0 for number in (*shape, first)):
        raise ValueError("not a tensor's shape or place")
    return Entry(dtype, tuple(shape), start + first)
