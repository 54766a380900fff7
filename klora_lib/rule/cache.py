"""Files and scores that a program keeps between images, so that a change of α, β, γ or scale costs nothing."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import KLoraError, LoraFileError, PairError, join_errors
from ..late import STARTED, Late
from ..settings import Settings
from .watch import Watch, ignore

if TYPE_CHECKING:
    from ..lora import file as lora_files
    from ..lora import peft
    from ..lora.file import LoraFile
    from . import combiners, energies, pairing, scoring, selectors
    from . import explain as explaining
    from . import kept as keeping
    from .explain import Closeness, Explained
    from .kept import ScoreFolder
    from .pairing import Pair
    from .plan import Plan
    from .scoring import Scores, Weights
else:
    lora_files = Late("klora_lib.lora.file")
    peft = Late("klora_lib.lora.peft")
    combiners = Late("klora_lib.rule.combiners")
    energies = Late("klora_lib.rule.energies")
    explaining = Late("klora_lib.rule.explain")
    keeping = Late("klora_lib.rule.kept")
    pairing = Late("klora_lib.rule.pairing")
    scoring = Late("klora_lib.rule.scoring")
    selectors = Late("klora_lib.rule.selectors")

T = TypeVar("T")
CPU = torch.device("cpu")
FILES = 2 << 30  # bytes of files that are kept; the two last used always are
PAIRS, SCORES = 2, 64  # how many are kept; a pair is made of two of the files, scores are a few kB


class Library:
    """A cache of LoRA files (by their state on disk) and of scores (by file content and K).  Nothing is kept on a GPU.

    Threads may share it: what two of them want at once is made once, and only who wants the same waits for it.
    Args: most: bytes of files to keep.  kept_in: the folder with scores on disk, which outlive the program; None: nowhere.
    """

    def __init__(self, most: int = FILES, kept_in: str | os.PathLike[str] | None = None) -> None:
        self.most, self.kept_in = most, kept_in
        self.kept: ScoreFolder | None = None  # that folder, once it was used
        self.files: OrderedDict[Hashable, LoraFile] = OrderedDict()
        self.sizes: dict[Hashable, int] = {}  # bytes of each of these files
        self.pairs: OrderedDict[Hashable, Pair] = OrderedDict()
        self.scores: OrderedDict[Hashable, Scores] = OrderedDict()
        self.directions: OrderedDict[Hashable, tuple[Tensor | None, ...]] = OrderedDict()
        self.closeness: OrderedDict[Hashable, Closeness] = OrderedDict()
        self.lock = Lock()  # of the shelves above; it is not held while something is made
        self.turns: dict[Hashable, Lock] = {}  # what is being made now
        self.waiting = 0  # threads that wait for what another one makes

    def read(self, path: str | os.PathLike[str], name: str) -> LoraFile:
        """The file or PEFT folder at ``path``, read again whenever size, time or identity of the file, or of an
        adapter_config.json beside it, changed.  Raises LoraFileError."""
        weights = peft.find_weights(path)
        there = read_stamp(weights)
        if there is None:
            return lora_files.read_lora(path, name)  # which says what is wrong
        key = os.path.realpath(weights), there, read_stamp(weights.parent / peft.CONFIG), name
        file = self.get_or_make(self.files, key, None, lambda: lora_files.read_lora(path, name))
        with self.lock:
            if key in self.files:  # another thread's files may have taken its place by now
                self.sizes[key] = there.size
            self.let_go()
        return file

    def let_go(self) -> None:
        """Drop the files that were unused for longest, and their pairs, until the rest is small enough."""
        while len(self.files) > 2 and sum(self.sizes.values()) > self.most:
            key, file = self.files.popitem(last=False)
            self.sizes.pop(key, None)  # unknown where another thread has only just read it
            for pair_key in [k for k, pair in self.pairs.items() if file is pair.content or file is pair.style]:
                del self.pairs[pair_key]

    def read_both(self, *listed: tuple[str | os.PathLike[str], str]) -> tuple[LoraFile, LoraFile]:
        """Content and style, each given by path and name.  Raises LoraFileError that names the role, or both."""
        files: list[LoraFile] = []
        errors: list[KLoraError] = []
        for role, (path, name) in zip(("content", "style"), listed, strict=True):
            try:
                files.append(self.read(path, name))
            except LoraFileError as e:
                errors.append(e.blame(role))
        if errors:
            raise join_errors(errors)
        content, style = files
        return content, style

    def pair(self, content: LoraFile, style: LoraFile) -> Pair:
        """The two, aligned.  Raises PairError."""
        key = content.name, content.digest, style.name, style.digest
        return self.get_or_make(self.pairs, key, PAIRS, lambda: pairing.make_pair(content, style))

    def measure(
        self, pair: Pair, settings: Settings, device: torch.device, free: float = math.inf, weights: Weights | None = None,
        watch: Watch = ignore,
    ) -> Scores:  # fmt: skip
        """What the method of ``settings`` compares: Top-K sums, or energies, which cost a small part of these.

        See ``score_units``, for ``watch`` too: it is called where something is computed, and may end that.
        """
        if settings.method not in selectors.BY_ENERGY:
            return self.score(pair, settings.k, device, free, weights, watch)
        if pair.relative:
            if weights is None:
                raise make_model_needed_error(pair)
            found = energies.compute_energies(pair.units, device, free, weights)
        else:
            found = self.find_energies(pair, device, free, watch)
        if settings.method != "np":
            return found
        both = pair.content.digest, pair.style.digest

        def find_directions() -> tuple[Tensor | None, ...]:
            act = partial(combiners.find_style_directions, pair, watch=watch)
            return scoring.run_where_memory_is(pair.units, device, free, act)

        return replace(found, directions=self.get_or_make(self.directions, both, PAIRS, find_directions))

    def find_energies(
        self, pair: Pair, device: torch.device, free: float = math.inf, watch: Watch = ignore
    ) -> Scores:
        """Of a pair that is not ``relative``."""
        return self.find_scores(pair, "energies", lambda: energies.compute_energies(pair.units, device, free, None, watch))

    def score(
        self, pair: Pair, k: str | int, device: torch.device, free: float = math.inf, weights: Weights | None = None,
        watch: Watch = ignore,
    ) -> Scores:  # fmt: skip
        """The pair's scores, taken on ``device`` the first time, within ``free`` bytes of it.

        Scores that depend on the model's ``weights`` are not kept, because nothing reports a change of these.  Raises
        PairError for such a pair without a model.
        """
        if pair.relative:
            if weights is None:
                raise make_model_needed_error(pair)
            return scoring.score_units(pair.units, k, device, free, weights)
        return self.find_scores(pair, k, lambda: scoring.score_units(pair.units, k, device, free, None, watch))

    def find_scores(self, pair: Pair, what: str | int, compute: Callable[[], Scores]) -> Scores:
        """From memory, else from disk, else computed.  ``what``: K, or "energies".  The pair is not ``relative``."""
        key = pair.content.digest, pair.style.digest, what

        def make() -> Scores:
            kept = self.find_folder()
            found = kept.find(key, len(pair.units)) if kept else None
            if found is None:
                found = compute()
                if kept:
                    kept.keep(key, found)
            return found

        return self.get_or_make(self.scores, key, SCORES, make)

    def find_folder(self) -> ScoreFolder | None:
        """Where scores are kept now."""
        if not self.kept_in:
            return None
        if self.kept is None or self.kept.path != Path(self.kept_in):
            self.kept = keeping.ScoreFolder(self.kept_in, STARTED)
        return self.kept

    def explain(self, pair: Pair, plan: Plan, steps: int) -> Explained:
        """``explain`` of a plan of ``pair``, computed on the CPU.  What it needs of the pair is kept."""
        return explaining.explain(plan, steps, self.find_energies(pair, CPU), self.compare(pair))

    def compare(self, pair: Pair, watch: Watch = ignore) -> Closeness:
        """How alike the two of a pair that is not ``relative`` are."""
        both = pair.content.digest, pair.style.digest
        return self.get_or_make(self.closeness, both, SCORES, lambda: explaining.measure_closeness(pair.units, watch))

    def get_or_make(self, shelf: OrderedDict[Hashable, T], key: Hashable, most: int | None, make: Callable[[], T]) -> T:
        """``shelf[key]``; made if it is absent.  Beyond ``most`` entries, the one unused for longest is dropped."""
        what = id(shelf), key
        while True:
            with self.lock:
                if key in shelf:
                    shelf.move_to_end(key)
                    return shelf[key]
                turn = self.turns.setdefault(what, Lock())
                mine = turn.acquire(blocking=False)
                self.waiting += not mine
            if mine:
                break
            with turn:  # another thread makes it; if it fails, this one tries
                pass
            with self.lock:
                self.waiting -= 1
        try:
            value = make()
            with self.lock:
                shelf[key] = value
                while most is not None and len(shelf) > most:
                    shelf.popitem(last=False)
        finally:
            with self.lock:
                del self.turns[what]
            turn.release()
        return value


def make_model_needed_error(pair: Pair) -> PairError:
    role = "content" if any(u.content is not None and u.content.relative for u in pair.units) else "style"
    file = pair.content if role == "content" else pair.style
    return PairError(
        f"{file.name!r} is an OFT, BOFT or IA3, which multiplies the model's own weights: its changes, and so the choice, "
        "can be known only with the model",
        role,
    )


class Stamp(NamedTuple):
    """Changes when the file on disk changes."""

    inode: int
    size: int
    changed: int  # ns


def read_stamp(path: str | os.PathLike[str]) -> Stamp | None:
    """None where there is no such file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)
