"""Code that is run in an interpreter of its own, in which nothing of ours has been imported."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

TORCH = "import safetensors.torch, torch"
LIBRARIES = "import fastapi, gradio, numpy, PIL.ImageDraw, PIL.ImageFont, safetensors.torch, starlette.concurrency, torch"
FORKING = """
import os, signal, sys, warnings

warnings.simplefilter("ignore")  # gradio's own
exec(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if not child:
        code, folder, out, err, *args = eval(line)
        for number, path in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.chdir(folder)
        signal.alarm(120)
        sys.argv = ["-c", folder, *args]
        exec(code, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def interpreter(libraries: str) -> subprocess.Popen[str]:
    """A fresh one that has imported ``libraries``, which takes seconds, and forks for each code that it is to run."""
    command = [sys.executable, "-B", "-c", FORKING, libraries]
    started = subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(started.communicate)
    return started


def python(libraries: str, code: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter that has nothing but ``libraries`` in it, and finds the package in ``folder``."""
    if not hasattr(os, "fork"):  # on Windows
        command = [sys.executable, "-B", "-c", f"{libraries}\n{code}", str(folder), *args]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs, "out"), Path(outputs, "err")
        running = interpreter(libraries)
        assert running.stdin is not None and running.stdout is not None
        print([code, str(folder), str(out), str(err), *args], file=running.stdin, flush=True)
        status = int(running.stdout.readline())
        return subprocess.CompletedProcess(code, status, out.read_text(), err.read_text())
