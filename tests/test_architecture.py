"""Theorems about the house: which room may know which, and that entering one changes nothing.

Each is a function of a folder, and is shown to fail on a copy of the package in which something is wrong.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .interpreter import LIBRARIES, TORCH, python

REPOSITORY = Path(__file__).parents[1]
PURE = (  # need no WebUI, and draw no picture
    "rule", "lora", "engine", "export", "numerics", "devices", "patching", "settings", "infotext", "errors", "late",
    "writing",
)  # fmt: skip
HOSTS_OWN = (
    "modules", "modules_forge", "backend", "ldm_patched", "comfy", "networks", "network", "lora", "gradio", "fastapi",
    "starlette", "pydantic", "PIL", "cv2", "transformers", "diffusers",
)  # fmt: skip
FLOOR = {"settings", "errors"}
PLAIN = {"rule", "lora", "numerics", "devices", "late", *FLOOR}
WORKS = {"engine", "patching", "infotext", *PLAIN}
KNOWS = {  # room: the rooms it may import, from the lowest floor up
    "errors": set(),
    "late": {"errors"},
    "numerics": set(),
    "devices": set(),
    "patching": set(),
    "writing": set(),
    "settings": {"errors"},
    "infotext": FLOOR,
    "lora": {"lora", "numerics", "devices", "errors"},
    "rule": {"rule", "writing", *PLAIN},
    "engine": {"engine", *PLAIN},
    "map": {"map", *PLAIN},
    "export": {"export", *PLAIN},
    "hosts": {"hosts", *WORKS},
    "diffusers": {"diffusers", *WORKS},
    "webui": {"webui", "map", "export", "hosts", "writing", *WORKS},
    "toy": {"toy", "errors"},  # a model to run on, whatever runs on it
    "drawing": {"drawing", "toy", "diffusers", "devices", "rule", "lora", *FLOOR},
    "evaluation": {"evaluation", "drawing", "toy", "diffusers", "rule", "lora", *FLOOR},
    "cli": {
        "cli", "webui", "engine", "evaluation", "drawing", "toy", "diffusers", "map", "export", "infotext", "writing",
        *PLAIN,
    },
    "__main__": {"cli"},
}
OUTSIDE = {"torch", "safetensors"} | set(sys.stdlib_module_names)  # what PURE rooms may import from elsewhere
ALSO = {("rule", "numpy")}  # searches in host memory, where torch's are slow
LONGEST = 300  # lines


WITHOUT_A_HOST = """
import importlib, pkgutil, sys

folder, rooms, hosts = sys.argv[1], sys.argv[2].split(), set(sys.argv[3].split())
sys.path.insert(0, folder)
import safetensors.torch, torch  # before the wall is up: what they try to import is not our business

asked = []
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hosts:
            asked.append(name)
            raise ImportError(name + " is a host's")

sys.meta_path.insert(0, Wall())
import klora_lib
for room in rooms:
    package = importlib.import_module("klora_lib." + room)
    print(package.__name__)
    for module in pkgutil.iter_modules(getattr(package, "__path__", []), package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
assert klora_lib.__file__.startswith(folder), klora_lib.__file__
sys.exit("asked for " + ", ".join(asked) if asked else 0)
"""


def imported_without_a_host(folder: Path) -> set[str]:
    """Every module of the pure rooms, each imported where no host's package can be; AssertionError where one asks."""
    run = python(TORCH, WITHOUT_A_HOST, folder, " ".join(PURE), " ".join(HOSTS_OWN))
    assert run.returncode == 0, run.stderr[-2000:]
    return set(run.stdout.split())


def sources(folder: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """(room, path, syntax tree) of every file of the package in ``folder``."""
    package = folder / "klora_lib"
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).parts[0].removesuffix(".py"), path, parse(path.read_text(encoding="utf-8"))


@cache
def parse(text: str) -> ast.Module:
    """The same file is parsed once, in however many copies of the package it is."""
    return ast.parse(text)


def imports(tree: ast.Module, path: Path, folder: Path) -> Iterator[str]:
    """Absolute names of the modules a file imports anywhere, inside functions too."""
    package = path.relative_to(folder).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_ways(folder: Path) -> list[str]:
    """Every import that goes against the one way, and every import of a pure room from outside."""
    wrong = []
    for room, path, tree in sources(folder):
        for name in imports(tree, path, folder):
            top, *rest = name.split(".")
            ok = not rest or rest[0] in KNOWS.get(room, set()) | {"__version__"}
            if top != "klora_lib":
                ok = room not in PURE or top in OUTSIDE or (room, top) in ALSO
            if not ok:
                wrong.append(f"{path.relative_to(folder)} imports {name}")
    return wrong


EFFECTS = """
import importlib, os, pkgutil, sys, threading

folder = sys.argv[1]
sys.path.insert(0, folder)
import fastapi, gradio, PIL.Image, PIL.ImageDraw, safetensors.torch, torch

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
ACTS = ("socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.fork", "os.remove", "os.rename", "os.mkdir",
        "os.rmdir", "os.putenv", "signal.signal", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp")
seen = []

def watch(event, args):
    if event in ACTS or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
        seen.append(f"{event} {args}")

def others():
    packages = ("torch", "safetensors", "gradio", "fastapi", "PIL", "builtins", "sys")
    things = {"torch.nn.Module": torch.nn.Module, "torch.nn.Linear": torch.nn.Linear, "torch.nn.Conv2d": torch.nn.Conv2d}
    things |= {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}
    changing = {"sys": {"modules", "path_importer_cache", "last_exc", "path"}}
    return {(name, key): id(value) for name, thing in things.items() for key, value in list(vars(thing).items())
            if key not in changing.get(name, ()) and key != "_" and not key.startswith("__")}

for name in ("torch.nn.functional", "torch.cuda"):
    importlib.import_module(name)
threads, noise, before = threading.enumerate(), torch.get_rng_state(), others()
flags = torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled(), torch.get_num_threads()
path, hooks = list(sys.path), list(sys.meta_path)
sys.addaudithook(watch)

import klora_lib
for module in list(pkgutil.walk_packages(klora_lib.__path__, "klora_lib.")):
    importlib.import_module(module.name)
    print(module.name, file=sys.stderr)

after = others()
seen += [f"{name}.{key} is another" for (name, key), value in before.items() if after.get((name, key)) != value]
seen += [f"{name} is imported" for name in ("diffusers", "transformers", "peft", "accelerate") if name in sys.modules]
seen += [] if threading.enumerate() == threads else ["a thread runs"]
seen += [] if torch.equal(torch.get_rng_state(), noise) else ["the noise has moved"]
now = torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled(), torch.get_num_threads()
seen += [] if now == flags else ["torch's flags differ"]
seen += [] if (sys.path, sys.meta_path) == (path, hooks) else ["the import path differs"]
print("\\n".join(seen), end="")
"""


def effects(folder: Path) -> str:
    """What importing every module does that another program could notice; "" when nothing."""
    run = python(LIBRARIES, EFFECTS, folder)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "klora_lib.rule.plan" in run.stderr.split()
    return run.stdout


# --- the theorems ---


def test_rule_lora_and_engine_never_meet_a_host() -> None:
    found = imported_without_a_host(REPOSITORY)
    rooms = {room for room in PURE if (REPOSITORY / "klora_lib" / room).is_dir()}
    files = {p for room in rooms for p in (REPOSITORY / "klora_lib" / room).glob("*.py") if p.stem != "__init__"}
    alone = {f"klora_lib.{room}" for room in PURE}
    assert found >= {f"klora_lib.{p.parent.name}.{p.stem}" for p in files} | alone


def test_imports_go_one_way() -> None:
    assert wrong_ways(REPOSITORY) == []


def test_every_room_has_its_floor_and_no_stairs_go_round() -> None:
    assert {room for room, _, _ in sources(REPOSITORY)} - {"__init__"} == set(KNOWS)
    floors = {room: knows - {room} for room, knows in KNOWS.items()}
    assert tuple(TopologicalSorter(floors).static_order())  # raises CycleError where two rooms know each other


def test_importing_does_nothing() -> None:
    assert effects(REPOSITORY) == ""


def test_there_is_no_global_state() -> None:
    found = [str(path) for _, path, tree in sources(REPOSITORY) if any(isinstance(n, ast.Global) for n in ast.walk(tree))]
    assert found == []


def test_files_are_small() -> None:
    ours = [*(REPOSITORY / "klora_lib").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    ours += [*(REPOSITORY / "tests").rglob("*.py"), REPOSITORY / "install.py"]
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in ours}
    assert {name: n for name, n in lines.items() if n > LONGEST} == {}


# --- and that they can fail ---


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "klora_lib", tmp_path / "klora_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def spoil(copy: Path, file: str, line: str) -> None:
    with open(copy / "klora_lib" / file, "a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rule/schedule.py", "import gradio"),
        ("engine/merge.py", "from modules import shared"),
        ("rule/cache.py", "try:\n    import ldm_patched.modules\nexcept ImportError:\n    pass"),
        ("errors.py", "import importlib; importlib.import_module('PIL.Image')"),
        ("rule/plan.py", "from ..webui import refuse"),
    ],
)
def test_a_host_met_in_a_pure_room_is_caught(copy: Path, file: str, line: str) -> None:
    spoil(copy, file, line)
    with pytest.raises(AssertionError, match="asked for|is a host's"):
        imported_without_a_host(copy)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rule/schedule.py", "from ..engine import merge"),
        ("rule/plan.py", "def late():\n    from ..engine.site import Site"),
        ("lora/file.py", "from .. import webui"),
        ("lora/deltas.py", "from ..rule.scoring import score"),
        ("lora/keys.py", "import klora_lib.hosts"),
        ("engine/site.py", "from ..hosts.contract import Host"),
        ("engine/session.py", "def late():\n    import numpy"),
        ("hosts/family.py", "from ..webui import panel"),
        ("diffusers/run.py", "from ..hosts import detect"),
        ("map/draw.py", "from ..engine import session"),
        ("settings.py", "from .lora import words"),
        ("errors.py", "from . import settings"),
    ],
)
def test_an_import_against_the_one_way_is_caught(copy: Path, file: str, line: str) -> None:
    assert wrong_ways(copy) == []
    spoil(copy, file, line)
    (wrong,) = wrong_ways(copy)
    assert str(Path("klora_lib", file)) in wrong


def test_every_effect_of_importing_is_caught(copy: Path) -> None:
    """One copy with all of them, since each run takes seconds."""
    spoil(copy, "lora/words.py", "open('left_behind', 'w').close()")
    spoil(copy, "rule/plan.py", "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    spoil(copy, "engine/site.py", "nn.Linear.forward = lambda self, x: x")
    spoil(copy, "rule/selectors.py", "torch.rand(1)")
    spoil(copy, "map/draw.py", "Image.open = None")
    spoil(copy, "diffusers/clock.py", "import transformers")
    found = effects(copy)
    for effect in (
        "left_behind",
        "a thread runs",
        "torch.nn.Linear.forward",
        "the noise has moved",
        "PIL.Image.open",
        "transformers",
    ):
        assert effect in found
