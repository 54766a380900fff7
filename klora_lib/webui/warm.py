"""Reading and scoring a pair in the background, for the live map: with progress, and only while somebody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from ..engine.fusion import blame_both
from ..rule.cache import CPU, Library
from ..rule.explain import Closeness
from ..rule.pairing import Pair
from ..rule.scoring import Scores
from ..settings import Settings

Files = tuple[tuple[str, str], tuple[str, str]]  # (path, name) of content and of style
THREAD = "K-LoRA map"
PATIENCE = 5.0  # seconds after which a pair is given up for which nobody asks any more
MOST = 3  # pairs that are prepared at once
SHARE = 2.0  # while a job draws, a pause after each layer, of so many times the time that it took
LONGEST_PAUSE = 0.5  # seconds


class Stopped(Exception):
    """The user, or nobody, waits for a pair any more; or a job needs the same."""


class Ready(NamedTuple):
    """All that a map needs and that takes time."""

    pair: Pair
    scores: Scores  # what the method compares
    energies: Scores
    closeness: Closeness


class Waiting(NamedTuple):
    progress: float  # from 0 to 1


class Task:
    """One pair that is read and scored.  ``ready`` or ``error``: what came of it, once it is ``over``."""

    def __init__(self, library: Library, files: Files, settings: Settings, is_drawing: Callable[[], bool]):
        self.library, self.files, self.settings, self.is_drawing = library, files, settings, is_drawing
        self.over = threading.Event()
        self.ready: Ready | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self.total, self.done = 0, 0  # layers to compute; 0 while the files are read
        self.asked = self.last = time.monotonic()
        self.thread = threading.Thread(target=self.run, daemon=True, name=THREAD)

    @property
    def progress(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    def run(self) -> None:
        try:
            self.ready = self.prepare()
        except BaseException as e:  # noqa: BLE001  whoever asks gets it
            self.error = e
        finally:
            self.over.set()

    def prepare(self) -> Ready:
        """Raises a KLoraError, for OFT, BOFT and IA3 too, whose change only the model tells; and Stopped."""
        library = self.library
        read = library.read_both(*self.files)
        with blame_both():
            pair = library.pair(*read)
            self.total = 3 * len(pair.units)  # scores, energies, how alike the two are
            self.last = time.monotonic()
            scores = library.measure(pair, self.settings, CPU, watch=self.watch)
            return Ready(pair, scores, library.find_energies(pair, CPU, watch=self.watch), library.compare(pair, self.watch))

    def watch(self) -> None:
        """Called before each layer: ends a task that nobody waits for, and leaves most of the time to a job.

        A job that wants the same pair need not wait until it is done here: it does it itself, where its model is.
        """
        now = time.monotonic()
        if self.stopped or now - self.asked > PATIENCE:
            raise Stopped
        if self.is_drawing():
            if self.library.waiting:
                raise Stopped
            time.sleep(min(SHARE * (now - self.last), LONGEST_PAUSE))
        self.done += 1
        self.last = time.monotonic()


class Warmer:
    """Prepares pairs in threads of their own, at most ``MOST`` at once."""

    def __init__(self, library: Library, is_drawing: Callable[[], bool]):
        self.library, self.is_drawing = library, is_drawing
        self.tasks: dict[Hashable, Task] = {}
        self.lock = threading.Lock()

    def ask(self, files: Files, settings: Settings, seconds: float) -> Ready | Waiting:
        """What a map of the pair needs if it is there after at most ``seconds``, else how far it is.

        Raises the error with which it ended, a KLoraError if the pair is refused.
        """
        key = make_key(files, settings)
        with self.lock:
            self.drop_old()
            task = self.tasks.get(key)
            if task is None:
                if len(self.tasks) >= MOST:
                    return Waiting(0.0)
                task = self.tasks[key] = Task(self.library, files, settings, self.is_drawing)
                task.thread.start()
            task.asked = time.monotonic()
        if not task.over.wait(seconds):
            return Waiting(task.progress)
        with self.lock:
            if self.tasks.get(key) is task:
                del self.tasks[key]
        if isinstance(task.error, Stopped):
            return Waiting(0.0)
        if task.error is not None:
            raise task.error
        assert task.ready is not None
        return task.ready

    def drop_old(self) -> None:
        """Forget results for which nobody asks any more.  Others stay until they are told."""
        now = time.monotonic()
        self.tasks = {k: t for k, t in self.tasks.items() if not t.over.is_set() or now - t.asked <= PATIENCE}

    def stop(self, files: Files, settings: Settings) -> None:
        """The user does not want to wait."""
        with self.lock:
            task = self.tasks.get(make_key(files, settings))
            if task is not None:
                task.stopped = True


def make_key(files: Files, settings: Settings) -> Hashable:
    return files, settings.k, settings.method
