"""K-LoRA on a real Forge over every way it keeps weights: a row each of a Markdown table; exit status 1 if one fails.

    python -m tests.live.gpu          on a GPU: formats × places of the weights × ways to stream them × flags
    python -m tests.live.gpu --cpu    the formats that a CPU can compute with

No row on a GPU has been seen yet: this was written, and run with --cpu, on a machine without one.

KLORA_FORGE_DIR, KLORA_FORGE_PYTHON and KLORA_FORGE_MODELS as for the other tests here.  With --checkpoint and what belongs
to it, one model of your own takes the place of the tiny ones.  bnb rows need bitsandbytes in Forge's Python.  This Forge has
no fp8 matmul (`--fast-fp8` is of its descendants).

In each row, all in differences of pixel values (0 to 255):
  twice    the plain image again: what the host itself does not reproduce; the row's floor
  after    the plain image at the end of the row, against the first: ≤ twice
  style, content, direct   K-LoRA at its extremes against the same by tags: ≤ 4, but only told (in brackets) where the host
           packs weights again after merging tags; there the "(fp16 LoRA)" row of the same format is the exact one
  other    style against tags again, under a third LoRA from the prompt
  rows     the same images, whatever moves or streams the weights: against the first row of this format, ≤ 4 more than
           plain images differ between the two rows
  engines  engine auto against bypass and, where weights are plain, merge, each ≤ 4; elsewhere merge must answer 422
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from .checks import FAR
from .host import difference
from .jobs import PLAIN, Pair, klora, plain, tag
from .kinds import FLUX_JOB, FLUX_PARTS, Forge, missing
from .storage import ONLINE, Checkpoint, OnGpu, Row, started

STILL = {"alpha": 0, "beta": 1e6}  # style everywhere that both touch
NEAR = 4
STREAMS = [*product(["Queue", "Async"], ["CPU", "Shared"])]
FLAGS = [
    (), ("--cuda-stream", "--pin-shared-memory"), ("--always-low-vram",), ("--always-no-vram",), ("--always-high-vram",),
    ("--always-offload-from-vram",),
]  # fmt: skip
TINY = [
    Checkpoint("tiny-sd15.safetensors", Pair("subject", "style")),
    Checkpoint("tiny-flux.safetensors", Pair("flux_subject", "flux_style"), FLUX_PARTS, FLUX_JOB),
    Checkpoint("tiny-flux-q8_0.gguf", Pair("flux_subject", "flux_style"), FLUX_PARTS, FLUX_JOB),
    Checkpoint("tiny-flux-q4_0.gguf", Pair("flux_subject", "flux_style"), FLUX_PARTS, FLUX_JOB),
]


def formats(model: Checkpoint, cpu: bool) -> list[str]:
    plain_types = [] if model.gguf else ["float8-e4m3fn", "float8-e5m2", *([] if cpu else ["bnb-nf4", "bnb-fp4"])]
    return ["Automatic", *(["Automatic" + ONLINE] if model.gguf else []), *(x for t in plain_types for x in (t, t + ONLINE))]


def rows(models: list[Checkpoint], cpu: bool) -> Iterator[Row]:
    """Everything on the GPU; then nothing or a part of it there, streamed in every way; then Forge's own flags."""
    for model in models:
        for weights in formats(model, cpu):
            yield Row(model, weights)
            if cpu:
                continue
            for gpu, (swap, place) in product([0, 100], STREAMS):
                if not weights.endswith(ONLINE) or (gpu, swap, place) == (0, "Async", "Shared"):
                    yield Row(model, weights, gpu, swap, place)
    for flags in FLAGS[1:]:
        yield from () if cpu else (Row(m, w, flags=flags) for m in models for w in formats(m, cpu) if ONLINE not in w)


# --- one row ---


def tagged(row: Row, content: tuple[float, float], style: tuple[float, float], more: str = "") -> dict:
    pair = row.model.pair
    return plain(prompt=PLAIN["prompt"] + tag(pair.content, *content) + tag(pair.style, *style) + more, **row.model.job)


def chosen(row: Row, settings: dict, more: str = "") -> dict:
    return klora(row.model.pair, settings, **row.model.job, prompt=PLAIN["prompt"] + more)


def check(host: OnGpu, row: Row, first: dict) -> tuple[dict[str, object], list[str]]:
    """What was measured, and what of it is wrong.  first: the images of the first row of each format."""
    host.load(row)
    simple, with_other = plain(**row.model.job), tag(row.model.other, 1, 0.7)
    before = host.image(simple)
    got: dict[str, object] = {"twice": difference(before, host.image(simple))}
    cases = {
        "style": (STILL, tagged(row, (1, 0), (1, 1))),
        "content": ({"method": "content"}, tagged(row, (1, 1), (1, 0))),
        "direct": ({"method": "direct"}, tagged(row, (1, 1), (1, 1))),
    }
    images = {name: host.image(chosen(row, settings)) for name, (settings, _) in cases.items()}
    got["placed"] = host.placed()
    apart = {name: difference(images[name], host.image(job)) for name, (_, job) in cases.items()}
    other = host.image(chosen(row, STILL, with_other))
    apart["other"] = difference(other, host.image(tagged(row, (1, 0), (1, 1), with_other)))
    got |= {name: most if row.like_tags else f"({most})" for name, most in apart.items()}
    wrong = [f"{name} {most} > {NEAR}" for name, most in apart.items() if most > NEAR and row.like_tags]
    known = first.setdefault(row.numbers, {"plain": before, **images})
    floor, got["rows"] = difference(known["plain"], before), max(difference(known[n], images[n]) for n in images)
    if got["rows"] > floor + NEAR:
        wrong.append(f"rows {got['rows']} > {floor} + {NEAR}")
    moved = {name: difference(image, before) for name, image in images.items()}
    moved["other"] = difference(other, images["style"])
    wrong += [f"{name} moves pixels by {most} only" for name, most in moved.items() if most <= FAR]
    got["engines"], told = engines(host, row)
    got["after"] = difference(before, host.image(simple))
    if got["after"] > got["twice"]:
        wrong.append(f"after {got['after']} > {got['twice']}")
    return got, wrong + told


def engines(host: OnGpu, row: Row) -> tuple[str, list[str]]:
    auto, bypass = host.image(chosen(row, {})), host.image(chosen(row, {"engine": "bypass"}))
    apart = difference(auto, bypass)
    wrong = [f"auto is {apart} from bypass"] if apart > (0 if row.packed else NEAR) else []
    answer = host.ask("/sdapi/v1/txt2img", chosen(row, {"engine": "merge"}))
    if row.packed:
        refused = answer.status == 422 and "merge cannot write" in answer.text
        return f"{apart}, merge refused" if refused else f"{apart}", wrong + ([] if refused else ["merge was not refused"])
    merged = difference(bypass, host.image(chosen(row, {"engine": "merge"})))
    return f"{apart}, merge {merged}", wrong + ([f"merge is {merged} from bypass"] if merged > NEAR else [])


COLUMNS = ("twice", "after", "style", "content", "direct", "other", "rows", "engines", "placed")
HEAD = ("checkpoint", "weights", "on the GPU", "flags", *COLUMNS, "")


def line(row: Row, got: dict[str, object], verdict: str) -> str:
    where = "all" if row.gpu is None else f"{row.gpu} MB, {row.swap}, {row.place}"
    cells = [row.model.checkpoint, row.weights, where, " ".join(row.flags), *(got.get(c, "") for c in COLUMNS), verdict]
    return "| " + " | ".join(map(str, cells)) + " |"


# --- all of them ---


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.live.gpu", description="see the docstring")
    parser.add_argument("--cpu", action="store_true", help="the rows a CPU can compute")
    parser.add_argument("--only", default="", help="rows whose line has this regular expression")
    parser.add_argument("--checkpoint", help="a file of yours in Stable-diffusion/, with --pair")
    parser.add_argument("--pair", nargs=2, metavar=("CONTENT", "STYLE"))
    parser.add_argument("--module", nargs="*", default=[], help="its VAE and text encoders, as VAE/name, text_encoder/name")
    parser.add_argument("--flux", action="store_true", help="the checkpoint of yours is a Flux")
    parser.add_argument("--size", type=int, default=512, help="of its images")
    return parser.parse_args()


def main() -> int:
    if lacking := missing(Forge):
        print("not set: " + ", ".join(lacking), file=sys.stderr)
        return 2
    args, models = arguments(), TINY
    if args.checkpoint:
        job = {"width": args.size, "height": args.size, **(FLUX_JOB if args.flux else {})}
        models = [Checkpoint(args.checkpoint, Pair(*args.pair), tuple(args.module), job)]
    wanted = [row for row in rows(models, args.cpu) if re.search(args.only, line(row, {}, ""))]
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    failed, first = 0, {}
    for flags in sorted({row.flags for row in wanted}):
        with tempfile.TemporaryDirectory(prefix="klora-forge-", ignore_cleanup_errors=True) as folder:
            host = started(Path(folder), args.cpu, flags, models)
            try:
                for row in (r for r in wanted if r.flags == flags):
                    failed += run(host, row, first)
            finally:
                host.stop()
    print(f"\n{len(wanted) - failed} of {len(wanted)} rows hold")
    return 1 if failed or not wanted else 0


def run(host: OnGpu, row: Row, first: dict) -> int:
    """1 where the row failed."""
    try:
        got, wrong = check(host, row, first)
    except (AssertionError, OSError) as e:
        got, wrong = {}, [str(e).splitlines()[0][:300]]
    print(line(row, got, "**" + "; ".join(wrong) + "**" if wrong else "ok"), flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
