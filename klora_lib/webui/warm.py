"""Reading and scoring a pair in the background, for the live map: with progress, and only while somebody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from ..rule.cache import CPU, Library
from ..rule.scoring import Watch
from ..settings import Settings

Listed = tuple[tuple[str, str], tuple[str, str]]  # (path, name) of content and of style
THREAD = "K-LoRA map"
PATIENCE = 5.0  # seconds after which a pair is given up for which nobody asks any more
MOST = 3  # pairs that are prepared at once
SHARE = 2.0  # while a job draws, a pause after each layer, of so many times the time that it took
LONGEST_PAUSE = 0.5  # seconds


class Stopped(Exception):
    """The user, or nobody, waits for a pair any more."""


class Task:
    """One pair that is read and scored.  ``error``: why it could not be, once it is ``over``."""

    def __init__(self, prepare: Callable[[Task], None], is_drawing: Callable[[], bool]):
        self.prepare, self.is_drawing = prepare, is_drawing
        self.over = threading.Event()
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
            self.prepare(self)
        except BaseException as e:  # noqa: BLE001  whoever asks gets it
            self.error = e
        finally:
            self.over.set()

    def watch(self) -> None:
        """Called before each layer: ends the task that nobody waits for, and leaves most of the time to a job."""
        now = time.monotonic()
        if self.stopped or now - self.asked > PATIENCE:
            raise Stopped
        if self.is_drawing():
            time.sleep(min(SHARE * (now - self.last), LONGEST_PAUSE))
        self.done += 1
        self.last = time.monotonic()


class Warmer:
    """Prepares pairs in threads of their own, at most ``MOST`` at once."""

    def __init__(self, library: Library, is_drawing: Callable[[], bool]):
        self.library, self.is_drawing = library, is_drawing
        self.tasks: dict[Hashable, Task] = {}
        self.lock = threading.Lock()

    def ask(self, listed: Listed, settings: Settings, seconds: float) -> Waiting | None:
        """Have the pair's files and scores ready: None if they are after at most ``seconds``, else how far it is.

        Raises the error with which it ended, a KLoraError if the pair is refused.
        """
        key = listed, settings.k, settings.method
        with self.lock:
            self.tasks = {k: task for k, task in self.tasks.items() if not task.over.is_set()}
            task = self.tasks.get(key)
            if task is None:
                if len(self.tasks) >= MOST:
                    return Waiting(0.0)
                task = self.tasks[key] = Task(lambda t: warm(self.library, listed, settings, t), self.is_drawing)
                task.thread.start()
            task.asked = time.monotonic()
        if not task.over.wait(seconds):
            return Waiting(task.progress)
        if isinstance(task.error, Stopped):
            return Waiting(0.0)
        if task.error is not None:
            raise task.error
        return None

    def stop(self, listed: Listed, settings: Settings) -> None:
        """The user does not want to wait."""
        with self.lock:
            task = self.tasks.get((listed, settings.k, settings.method))
            if task is not None:
                task.stopped = True


class Waiting(NamedTuple):
    progress: float  # from 0 to 1


def warm(library: Library, listed: Listed, settings: Settings, task: Task) -> None:
    """All that a map needs and that takes time.  Raises a KLoraError."""
    pair = library.pair(*library.read_both(*listed))
    task.total = 3 * len(pair.units)  # sums, energies, how alike the two are
    task.last = time.monotonic()
    watch: Watch = task.watch
    library.measure(pair, settings, CPU, watch=watch)
    if not pair.relative:
        library.find_energies(pair, CPU, watch=watch)
        library.compare(pair, watch)


