"""``python -m tests.bench``: print the speed tables; with ``--write docs/performance.md`` put each between its markers.

``--only scoring sampling``: some parts; each takes a few minutes and is written when it is done.  ``--quick``: a narrow
model and few rounds, to try the program out.  ``--methods``: what each method costs, which is in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from . import bypass, costs, image, images, memory, plan, profile, sampling, scaling, scoring, start
from .tables import describe_run, put_section
from .turns import CPU


def make_plan_rows() -> list[str]:
    p = plan.measure()
    out = [
        "| what | against | ratio | seconds |",
        "|---|---|---|---|",
        f"| plan a full-size SDXL pair (560 attention layers, ranks 32 and 64) | the bare products up @ down "
        f"| {p['ratio']:.2f} | {p['scored']:.2f} / {p['bare']:.2f} |",
        f"| the same pair again, other α, β, γ or scale | | | {p['cached']:.4f} |",
        f"| the same pair after a new start: scores from disk, both files read | | | {p['kept']:.4f} |",
        f"| plan it with `est` | with `klora` | {p['est by klora']:.3f} | {p['est']:.2f} / {p['klora']:.2f} |",
        f"| plan it with `np` | with `est` | {p['np by est']:.2f} | {p['np']:.2f} / {p['est']:.2f} |",
        f"| the projection of `np`, in a pass's first step | | | {p['projected']:.2f} |",
        f"| explain it (`plan --report`), planned with `est` | | | {p['explained']:.2f} |",
    ]
    return out


def make_start_rows() -> list[str]:
    s = start.measure(os.environ.get("KLORA_A1111_PYTHON", sys.executable))
    return [
        "| what | against | ratio | seconds |",
        "|---|---|---|---|",
        f"| load the script at a WebUI's start | all that the first job loads | {s['start'] / s['job']:.2f} "
        f"| {s['start'] / 1000:.3f} / {s['job'] / 1000:.3f} |",
    ]


def make_image_rows() -> list[str]:
    out = ["| what | against | ratio | seconds |", "|---|---|---|---|"]
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


Measure = Callable[..., list[str]]
HERE: dict[str, Callable[[], list[str]]] = {"plan": make_plan_rows, "start": make_start_rows, "image": make_image_rows}
FULL: dict[str, Measure] = {  # on the CPU, and on a GPU where there is one
    "scoring": scoring.measure, "sampling": sampling.measure, "images": images.measure, "bypass": bypass.measure,
    "memory": memory.measure, "scaling": scaling.measure, "profile": profile.measure,
}  # fmt: skip
PICTURE = "scaling.svg"


def measure_part(name: str, quick: bool, pictures: Path | None) -> list[str]:
    """The lines of a part's section: its tables, each with the machine below it."""
    if name in HERE:
        return [*HERE[name](), "", describe_run(CPU)]
    lines: list[str] = []
    for device in (CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])):
        measure = FULL[name]
        if name == "scaling" and pictures is not None:
            measure = partial(measure, picture=pictures / (PICTURE if device == CPU else f"cuda-{PICTURE}"))
        lines += [*([""] if lines else []), *measure(device, quick), "", describe_run(device)]
    return lines


def write(file: str, mark: str, lines: list[str]) -> None:
    path = Path(file)
    path.write_text(put_section(path.read_text(), mark, lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--write", metavar="FILE", help="the document with the markers of every part")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[*HERE, *FULL], default=[*HERE, *FULL])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, help="of torch; with one, seconds are the processor's")
    parser.add_argument("--methods", action="store_true", help="what each method costs")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.methods:
        lines = [*costs.make_rows(), "", describe_run(CPU)]
        print("\n".join(lines))
        if args.write:
            write(args.write, "costs", lines)
        return
    for name in args.only:
        lines = measure_part(name, args.quick, Path(args.write).parent / "pictures" if args.write else None)
        print("\n".join([f"## {name}", "", *lines, ""]), flush=True)
        if args.write:
            write(args.write, f"bench:{name}", lines)


if __name__ == "__main__":
    main()
