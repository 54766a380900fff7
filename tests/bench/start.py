"""What loading our script adds to a WebUI's start, beside what a WebUI has loaded by then: the processor's milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = 11

# every run is a fork of one process, as importing torch and gradio takes far longer than what is measured; the first one
# compiles our files, which every later start of a WebUI finds compiled
MEASURE = """
import gc, json, os, sys, time
import fastapi, gradio, numpy, PIL.ImageDraw, PIL.ImageFont, safetensors.torch, starlette.concurrency, torch

sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[3]
gc.freeze()
found = []
for _ in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    if os.fork() == 0:
        began = time.process_time()
        import klora_lib.webui.boot
        klora_lib.webui.boot.make_app()
        loaded = time.process_time() - began
        began = time.process_time()
        import klora_lib.webui.wishes, klora_lib.webui.job, klora_lib.hosts.a1111
        os.write(writing, json.dumps([loaded, time.process_time() - began]).encode())
        os._exit(0)
    os.wait()
    found.append(json.loads(os.read(reading, 1000)))
print(json.dumps(found))
"""


def measure(python: str = sys.executable, package: Path = REPOSITORY, runs: int = RUNS) -> dict[str, float]:
    """Milliseconds of loading the script, and of what the first job still loads: the least of ``runs``, as other work on
    the machine only adds.  python: a WebUI's, with the libraries that it has."""
    with TemporaryDirectory() as compiled:
        command = [python, "-c", MEASURE, str(package), str(runs), compiled]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    start, job = (1000 * min(column) for column in zip(*json.loads(run.stdout.splitlines()[-1])))
    return {"start": start, "job": job}
