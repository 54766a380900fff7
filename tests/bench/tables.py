"""Markdown: tables, the machine on which they were measured, and where they go in a document."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from klora_lib.errors import format_count


def make_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Raises ValueError for a row that is not as long as the head."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells, the table {len(head)} columns: {row}")
    return [make_row(head), "|---" * len(head) + "|", *map(make_row, rows)]


def make_row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def put_section(text: str, mark: str, lines: Sequence[str]) -> str:
    """``text`` with ``lines`` between its markers for ``mark``.  Raises ValueError if it does not have these once."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    body = "\n".join([begin, *lines, end])
    found, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: body, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the document has {count} sections {begin} … {end}, and must have one")
    return found


def name_processor() -> str:
    """The processor's name as Linux tells it, or its architecture."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    return f"{found[1]}, {platform.machine()}" if found else platform.machine()


def name_device(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory / (1 << 30):.0f} GB, CUDA {torch.version.cuda}"
    threads = torch.get_num_threads()
    clock = "the processor's seconds" if threads == 1 else "wall time"
    cores = format_count(os.cpu_count() or 1, "core")
    return f"CPU ({name_processor()}, {cores}, {format_count(threads, 'thread')}; {clock})"


def describe_run(device: torch.device) -> str:
    return f"{name_device(device)}; torch {torch.__version__}; {date.today().isoformat()}."
