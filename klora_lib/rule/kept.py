"""Scores in a folder on disk, so that a program that starts again need not compute them: one small file per pair and K.

A file is taken only if all of it is there and it says that it is the answer to this very question; anything else (torn,
damaged, of another version, someone else's) is as if it were absent, and is written anew.  It is written beside its place
and renamed, so that processes and threads that share the folder see whole files only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import quote_first_line
from ..writing import write_whole
from .scoring import Scores

ENDING = ".scores"
MOST = 256  # files in the folder; beyond that those unused for longest go
STALE = 3600.0  # seconds after which a file that is not whole was left behind by a process that ended
COLUMNS = ("content_topk", "style_topk", "content_abs", "style_abs")  # float64, little-endian
Question = Sequence[str | int]
ROOMS = ("lora", "rule", "devices.py", "numerics.py")  # of the package: what decides the scores of two files


class ScoreFolder:
    """Scores of pairs by their question: the digests of both files and K.

    Which device computed them is no part of it, as in memory: the same pair has the same table tomorrow, to the last bit.
    Whatever the disk does, nothing fails: then scores are computed, and the first trouble is told in one line.
    Args: path: made when something is first written.  started: when our code was loaded, or before.  most: files to keep.
    """

    def __init__(self, path: str | os.PathLike[str], started: float, most: int = MOST) -> None:
        self.path, self.started, self.most = Path(path), started, most
        self.code = ""  # the digest of our code, once it is known
        self.told = False

    def find(self, question: Question, units: int) -> Scores | None:
        """The scores of ``units`` units that were kept for this question, bit for bit; None where there are none."""
        try:
            path = self.place(question)
            scores = unpack(path.read_bytes(), question, self.read_code(), units)
        except FileNotFoundError:
            return None
        except OSError as e:
            self.tell(e)
            return None
        if scores is not None:
            with suppress(OSError):  # only for the order in which files go
                os.utime(path)
        return scores

    def keep(self, question: Question, scores: Scores) -> None:
        try:
            data = pack(question, self.read_code(), scores)
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.place(question), data)
            self.drop_old()
        except OSError as e:
            self.tell(e)

    def place(self, question: Question) -> Path:
        """Another version of our code has another place.  Raises OSError as ``read_code``."""
        name = hashlib.blake2b(json.dumps([question, self.read_code()]).encode(), digest_size=16).hexdigest()
        return self.path / f"{name}{ENDING}"

    def drop_old(self) -> None:
        """Remove what is too much, and what a process that ended has left half written.  Raises OSError."""
        with os.scandir(self.path) as listed:
            ours = [(read_time(entry), entry) for entry in listed if ENDING in entry.name]
        whole = sorted(((when, entry.path) for when, entry in ours if entry.name.endswith(ENDING)), reverse=True)
        partial = [entry.path for when, entry in ours if not entry.name.endswith(ENDING) and when < time.time() - STALE]
        for path in [path for _, path in whole[self.most :]] + partial:
            with suppress(FileNotFoundError, PermissionError):  # another process does the same, or reads it (Windows)
                os.remove(path)

    def read_code(self) -> str:
        """The digest of the code that reads files and scores them: scores of another version of it are not taken.

        A number that somebody must remember to raise would one day be forgotten, and tables would be wrong without a word.
        Raises OSError where the code is not in files, or where these were updated while the program runs.
        """
        if not self.code:
            package, digest = Path(__file__).parents[1], hashlib.blake2b()
            for room in ROOMS:
                found = package / room
                for path in sorted(found.glob("*.py")) if found.is_dir() else [found]:
                    stat = path.stat()
                    if max(stat.st_mtime, stat.st_ctime) > self.started:  # a copy may keep the older time of its contents
                        raise OSError(f"{path.name} of the extension has a time after its start")
                    digest.update(f"{path.name}\n".encode() + path.read_bytes())
            self.code = digest.hexdigest()
        return self.code

    def tell(self, error: OSError) -> None:
        if not self.told:
            self.told = True
            print(f"K-LoRA: scores are not kept in {str(self.path)!r} ({quote_first_line(error)})", file=sys.stderr)


def read_time(entry: os.DirEntry[str]) -> float:
    """When it was last used; 0 if another process has just removed it, or if a clock was wrong then."""
    try:
        when = entry.stat().st_mtime
    except OSError:
        return 0.0
    return when if when < time.time() + STALE else 0.0


def pack(question: Question, code: str, scores: Scores) -> bytes:
    """A line with the digest of what follows; a line of JSON; the columns."""
    head = {"question": question, "code": code, "squared": scores.squared, "k": scores.k}
    columns = [swap(array("d", getattr(scores, name).tolist())).tobytes() for name in COLUMNS]
    body = b"\n".join([json.dumps(head).encode(), b"".join(columns)])
    return b"\n".join([hashlib.blake2b(body).hexdigest().encode(), body])


def unpack(data: bytes, question: Question, code: str, units: int) -> Scores | None:
    """None unless ``data`` is what ``pack`` made of scores of ``units`` units for this question, with this code."""
    digest, _, body = data.partition(b"\n")
    if digest != hashlib.blake2b(body).hexdigest().encode():
        return None
    line, _, numbers = body.partition(b"\n")
    head = json.loads(line)  # as it was written: the digest is right
    if (head.get("question"), head.get("code")) != (list(question), code):
        return None
    if len(head["k"]) != units or len(numbers) != len(COLUMNS) * units * 8:
        return None
    columns = torch.tensor(swap(array("d", numbers)), dtype=torch.float64).reshape(len(COLUMNS), units)
    content, style, content_abs, style_abs = columns.unbind(0)
    return Scores(tuple(head["k"]), content, style, content_abs, style_abs, head["squared"])


def swap(numbers: array[float]) -> array[float]:
    """From the machine's order of bytes to little-endian, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
