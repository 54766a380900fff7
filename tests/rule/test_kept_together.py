"""Theorem: two programs that keep scores in one folder at once leave whole files only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from klora_lib.rule import kept as keeping

from .test_kept import entries

REPOSITORY = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from tests.rule.test_kept import Q, bits, some
from klora_lib.rule.kept import ScoreFolder

kept, units = ScoreFolder(sys.argv[1], time.time(), most=4), 400
good = [bits(some(seed, units)) for seed in range(3)]
print("ready", flush=True)
sys.stdin.readline()
found = 0
for turn in range(120):
    kept.keep(Q, some(turn % 3, units))
    kept.keep((str(turn), sys.argv[2], 1), some(turn, 3))
    scores = kept.find(Q, units)
    if scores is not None:
        assert bits(scores) in good
        found += 1
print(found, kept.told)
"""


def test_two_processes_that_write_the_same_at_once_leave_whole_files(tmp_path: Path) -> None:
    """And each takes away what is too much under the other's hands."""
    command = [sys.executable, "-B", "-c", WRITER, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, name], cwd=REPOSITORY, **pipes) for name in "ab"]
    for each in both:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    said = []
    for each in both:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in both:
        out, error = each.communicate(timeout=300)
        assert each.returncode == 0, error
        said.append(out.split())
    assert all(int(found) > 0 and told == "False" for found, told in said), said
    left = entries(tmp_path)
    assert 1 <= len(left) <= 5 and all(path.name.endswith(keeping.ENDING) for path in left)
