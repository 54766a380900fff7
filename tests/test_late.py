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

from .test_architecture import REPOSITORY, python, sources, spoil

SLOW = """
import time
time.sleep(0.2)
made = object()
"""
START = """
import sys
sys.path.insert(0, sys.argv[1])
import klora_lib.webui.boot
klora_lib.webui.boot.make_app()
print(*sorted(name for name in sys.modules if name.startswith("klora_lib.")))
"""
ROOMS_OF_A_JOB = ("lora", "engine", "export", "map", "numerics", "devices", "diffusers")
OF_A_JOB = ("webui.job", "webui.listed", "webui.wishes", "webui.save", "hosts.a1111", "hosts.forge", "rule.plan")


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


def too_early(folder: Path) -> list[str]:
    """What loading our script imports although only a job, a request, a plot or a button needs it."""
    run = python(START, folder)
    assert run.returncode == 0, run.stderr[-2000:]
    loaded = run.stdout.split()
    assert "klora_lib.webui.app" in loaded and "klora_lib.rule.cache" in loaded
    parts = {name: name.removeprefix("klora_lib.") for name in loaded}
    return [name for name, part in parts.items() if part.split(".")[0] in ROOMS_OF_A_JOB or part in OF_A_JOB]


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


def test_loading_the_script_imports_nothing_of_a_job() -> None:
    assert too_early(REPOSITORY) == []


def test_the_type_checker_reads_what_is_imported_later() -> None:
    assert false_names(REPOSITORY) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "klora_lib", tmp_path / "klora_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("line", ["from . import job", "from ..lora import file", "from ..rule.plan import Plan"])
def test_an_import_that_is_too_early_is_caught(copy: Path, line: str) -> None:
    spoil(copy, "webui/panel.py", line)
    assert too_early(copy) != []


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
