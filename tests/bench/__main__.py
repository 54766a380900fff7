"""``python -m tests.bench``: print the speed table; with ``--write docs/performance.md`` put it between that file's markers.

``--methods``: the table of what each method costs, which is in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from pathlib import Path

import torch

from klora_lib.errors import format_count

from . import costs, image, plan, start


def rows() -> list[str]:
    p = plan.measure()
    out = [
        "| what | against | ratio | seconds |",
        "|---|---|---|---|",
        f"| plan a full-size SDXL pair (560 attention layers, ranks 32 and 64) | the bare products up @ down "
        f"| {p['ratio']:.2f} | {p['scored']:.2f} / {p['bare']:.2f} |",
        f"| the same pair again, other α, β, γ or scale | | | {p['cached']:.4f} |",
        f"| plan it with `est` | with `klora` | {p['est by klora']:.3f} | {p['est']:.2f} / {p['klora']:.2f} |",
        f"| plan it with `np` | with `est` | {p['np by est']:.2f} | {p['np']:.2f} / {p['est']:.2f} |",
        f"| the projection of `np`, in a pass's first step | | | {p['projected']:.2f} |",
        f"| explain it (`plan --report`), planned with `est` | | | {p['explained']:.2f} |",
    ]
    s = start.measure(os.environ.get("KLORA_A1111_PYTHON", sys.executable))
    out += [
        f"| load the script at a WebUI's start | all that the first job loads | {s['start'] / s['job']:.2f} "
        f"| {s['start'] / 1000:.3f} / {s['job'] / 1000:.3f} |",
    ]
    if image.available():
        i = image.measure()
        out += [
            f"| 20-step image, tiny SDXL on A1111 1.10.1 | the two tags, already merged "
            f"| {i['ratio']:.3f} | {i['klora']:.2f} / {i['merged']:.2f} |",
            f"| one more step in which no layer switches | one more step with the two tags merged | {i['step']:.3f} | |",
        ]
    else:
        out.append("| image on a WebUI | not measured: KLORA_A1111_DIR, _PYTHON and _MODELS are not set | | |")
    return out


def describe_run() -> str:
    threads = format_count(torch.get_num_threads(), "thread")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {threads}"
    return f"Medians of one run on CPU ({machine}; the WebUI with one thread)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--methods", action="store_true", help="what each method costs")
    args = parser.parse_args()
    file, mark = args.write, "costs" if args.methods else "bench"
    table = "\n".join([*(costs.make_rows() if args.methods else rows()), "", describe_run()])
    print(table)
    if file:
        text = Path(file).read_text()
        begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        Path(file).write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
