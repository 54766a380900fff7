"""Modules that are imported at their first use: once, whole, and never silently missing; and nothing else at the start."""

from __future__ import annotations

import ast
import shutil
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from klora_lib.errors import HostError, LoadError
from klora_lib.late import Late

from .interpreter import LIBRARIES, python
from .test_architecture import REPOSITORY, sources, spoil

SLOW = """
import time
time.sleep(0.2)
made = object()
"""
# as a WebUI does it: it has these libraries, loads the script, builds the page of one tab, and then serves it
START = """
import sys, warnings
from pathlib import Path
from unittest.mock import Mock

folder, repository = sys.argv[1:3]
sys.path[:0] = [folder, repository]  # the package of the one, the fakes of the other
warnings.simplefilter("ignore")  # gradio's own
import fastapi, gradio, numpy, PIL.ImageDraw, PIL.ImageFont, safetensors.torch, starlette.concurrency, torch
from tests.fakes import plot
from tests.fakes.a1111 import FakeA1111
from tests.fakes.host import installed
from tests.fakes.server import make_server

with installed(FakeA1111, Path(folder)) as host:
    grid = sys.modules["scripts.xyz_grid"] = plot.make()
    axes = len(grid.axis_options)
    host.shared.OptionInfo, host.shared.opts.add_option = Mock(), Mock()
    before = set(sys.modules)
    host.load_script()
    print(*set(sys.modules) - before)
    for name in ("ui_settings", "before_ui"):
        for callback in host.script_callbacks.registered[name]:
            callback()
    with gradio.Blocks():
        host.script.ui(False)
    server = make_server(host)
    assert not host.swallowed, host.swallowed
    assert len(grid.axis_options) > axes and host.shared.opts.add_option.called
    assert any(r.path == "/klora/panel/map" for r in server.router.routes)
    print(*(name for name in set(sys.modules) - before if name.startswith("klora_lib")))
"""
NEEDED = """
    errors late patching settings infotext writing
    hosts hosts.family hosts.a1111
    map map.colours
    rule rule.cache rule.schedule rule.watch
    webui webui.app webui.boot webui.facts webui.facts_html webui.live webui.map_panel webui.options webui.panel webui.parts
    webui.pickers webui.plot webui.preset_box webui.presets webui.refuse webui.routes webui.xyz
"""  # of the package, by a WebUI's start; all else is of a job, a request, a plot or a button


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a module that is not written yet, in ``tmp_path``."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"late_{uuid.uuid4().hex}"
    yield name
    sys.modules.pop(name, None)


def test_a_module_is_imported_at_its_first_use(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath(f"{name}.py").write_text("made = 7")
    late = Late(name)
    assert name not in sys.modules
    assert late.made == 7 and name in sys.modules
    with pytest.raises(AttributeError, match="absent"):
        _ = late.absent


def test_many_threads_at_once_find_it_whole_and_the_same(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath(f"{name}.py").write_text(SLOW)
    late = Late(name)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: id(late.made), range(8)))
    assert found == {id(sys.modules[name].made)}


@pytest.mark.parametrize(
    ("text", "fact"),
    [("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"), ("def", "SyntaxError: invalid"),
     ("raise KeyError", "KeyError: KeyError")],
)  # fmt: skip
def test_what_cannot_be_imported_is_a_sentence_at_each_use(tmp_path: Path, name: str, text: str, fact: str) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    late = Late(name)
    for _ in range(2):
        with pytest.raises(LoadError) as refusal:
            _ = late.made
        assert isinstance(refusal.value, HostError)  # so that whatever tells that no job can run tells this too
        assert str(refusal.value).startswith(f"its file {name} cannot be loaded ({fact}")
        assert str(refusal.value).endswith("; install the extension again and restart the WebUI")


# --- what a WebUI's start imports ---


def find_imports(folder: Path) -> tuple[set[str], set[str]]:
    """What loading our script imports, and what of ours a whole start of a WebUI does."""
    run = python(LIBRARIES, START, folder, str(REPOSITORY))
    assert run.returncode == 0, run.stderr[-2000:]
    script, start = run.stdout.splitlines()
    return set(script.split()), set(start.split())


NAMES = {"klora_lib", *(f"klora_lib.{name}" for name in NEEDED.split())}


def read_names(body: list[ast.stmt], package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, the module or thing that it stands for) of every import among these lines of a file of ``package``."""
    for line in body:
        if isinstance(line, ast.ImportFrom):
            base = [*package[: len(package) - line.level + 1], *([line.module] if line.module else [])]
            yield from ((each.asname or each.name, ".".join([*base, each.name])) for each in line.names)


def false_names(folder: Path) -> list[str]:
    """Every ``Late`` that does not name the module which the type checker reads in its place."""
    found = []
    for _, path, tree in sources(folder):
        package = path.relative_to(folder).with_suffix("").parts[:-1]
        lates = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Late"]
        told = []
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING" and node.orelse:
                read = dict(read_names(node.body, package))
                for line in node.orelse:
                    assert isinstance(line, ast.Assign) and isinstance(line.value, ast.Call), ast.unparse(line)
                    given, target = line.value.args[0], line.targets[0]
                    told.append((getattr(given, "value", ""), read.get(getattr(target, "id", ""))))
        found += [f"{path.name}: {name} for {module}" for name, module in told if name != module]
        if len(told) != len(lates) and path.parent.name != "hosts":  # the hosts' families are found by trying
            found.append(f"{path.name}: a Late that the type checker does not see")
    return found


def test_a_start_imports_what_the_page_needs_and_nothing_else() -> None:
    script, start = find_imports(REPOSITORY)
    assert start == NAMES
    assert script == NAMES - {"klora_lib.hosts.a1111"}  # nor another library


def test_the_type_checker_reads_what_is_imported_later() -> None:
    assert false_names(REPOSITORY) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "klora_lib", tmp_path / "klora_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("webui/options.py", "from ..map import draw_plan", "klora_lib.map.draw"),
        ("webui/live.py", "PATIENCE = live_map.AT_ONCE", "klora_lib.engine.fusion"),
        ("errors.py", "import filecmp", "filecmp"),
    ],
)
def test_an_import_that_is_too_early_is_caught(copy: Path, file: str, line: str, found: str) -> None:
    spoil(copy, file, line)
    script, _ = find_imports(copy)
    assert found in script - NAMES


def test_so_is_one_that_comes_with_the_page(copy: Path) -> None:
    spoil(copy, "webui/map_panel.py", "def add_map(elem_id: ElemId) -> None:\n    from . import job")
    script, start = find_imports(copy)
    assert script <= NAMES and "klora_lib.webui.job" in start


@pytest.mark.parametrize(
    "lines",
    [
        'if TYPE_CHECKING:\n    from . import job\nelse:\n    job = Late("klora_lib.webui.jobs")',
        'job = Late("klora_lib.webui.job")',
    ],
)
def test_a_false_name_is_caught(copy: Path, lines: str) -> None:
    assert false_names(copy) == []
    spoil(copy, "webui/app.py", lines)
    assert len(false_names(copy)) >= 1
