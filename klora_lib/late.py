"""Modules of ours that are imported at their first use, so that a WebUI starts as fast as without us.

When a WebUI starts it needs the panel, the plot's axes and the routes' addresses.  The rule, the LoRA files, the engine and
the job are 50 modules and 0.2 s; only a job, a request, a plot or a button needs them.  A file that is imported at the
start names such a module like this:

    if TYPE_CHECKING:
        from . import job as jobs
    else:
        jobs = Late("klora_lib.webui.job")

The type checker and the test of who may import whom read an ordinary import.  Names that only annotations need are imported
under TYPE_CHECKING alone.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from .errors import LoadError, quote_first_line

STARTED = time.time()  # when our code was loaded, or before; Reload UI makes new objects of the same code


class Late:
    """Stands for the module ``name``.  Threads may use it at once: Python lets each wait until the module is whole.

    A module that cannot be imported is a LoadError at each use, and is tried again at the next.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            module = import_module(self._name)
        except Exception as e:  # noqa: BLE001  whatever a damaged file or a library of another version does
            what = f"its file {self._name} cannot be loaded ({type(e).__name__}: {quote_first_line(e)})"
            raise LoadError(f"{what}; install the extension again and restart the WebUI") from e
        return getattr(module, attribute)
