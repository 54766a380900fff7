"""The most memory that something takes, seen in a fresh process so that nothing before it counts.

On the CPU the peak of the resident set, which Linux keeps (``VmHWM``) and sets back when 5 is written to ``clear_refs``.
On a GPU, what torch allocated at most.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MB = 1 << 20
REPOSITORY = Path(__file__).resolve().parents[2]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def available() -> bool:
    return STATUS.exists() and CLEAR.exists()


def read_status(field: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM``."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def measure_peak(act: Callable[[], object], device: torch.device) -> int:
    """Bytes of the device's memory that ``act`` takes at most, above what was in use before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    CLEAR.write_text("5")
    before = read_status("VmRSS")
    act()
    return read_status("VmHWM") - before


def run_fresh(module: str, *args: str) -> Any:
    """The JSON that ``python -m module args`` prints last.  Freed memory goes back to the system at once."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
