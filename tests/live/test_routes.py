"""/klora/v1 on the real server: the document's examples, the plan that a job draws by, the guard, what is refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image

from klora_lib.cli.main import main
from klora_lib.webui.live import PATH

from ..examples import WEBUI, read_commands, read_examples
from .checks import FAR, same
from .conftest import REPOSITORY, running
from .host import Host, difference
from .jobs import PLAIN, TITLE, Model, klora, plain, scripts
from .kinds import KINDS, install

ROUTES = ("/klora/v1/schema", "/klora/v1/version", "/klora/v1/plan", "/klora/v1/map")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is named in the environment is no way to this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(host: Host, path: str, body: object = None, user: str = "") -> requests.Response:
    auth = tuple(user.split(":")) if user else None
    if body is None:
        return requests.get(host.address + path, auth=auth, timeout=300)
    return requests.post(host.address + path, json=body, auth=auth, timeout=300)


def fetch_each(host: Host, pair: dict, user: str = "") -> list[int]:
    return [fetch(host, path, None if path.endswith(("schema", "version")) else pair, user).status_code for path in ROUTES]


# --- the document ---


def test_the_documents_python(host: Host, sd15: Model, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for example in read_examples("python"):
        exec(example.replace(WEBUI, host.address), {})
    said = capsys.readouterr().out
    assert "422 K-LoRA: alpha: must be a number" in said and "in most layers" in said
    with Image.open(tmp_path / "cat.png") as drawn, Image.open(tmp_path / "map.png") as picture:
        assert drawn.size[0] >= 64 and picture.size[0] > 300


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_documents_curl(host: Host, sd15: Model, tmp_path: Path):
    answers = []
    for command in read_commands():
        run = subprocess.run(
            command.replace(WEBUI, host.address), shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr
        answers.append(run.stdout)
    version, schema, plan, _ = answers
    assert json.loads(version)["trouble"] is None
    assert {row["name"] for row in json.loads(schema)["settings"]} >= {"enabled", "content", "style", "balance"}
    assert json.loads(plan)["steps"] == 20
    assert ET.parse(tmp_path / "map.svg").getroot().tag.endswith("svg")


# --- the plan ---


WORDS = ("name", "selection")


@pytest.mark.parametrize("settings", [{}, {"method": "est", "beta": 0.8}, {"method": "random", "seed": 7}], ids=str)
def test_a_plan_is_the_command_lines(host: Host, sd15: Model, tmp_path: Path, settings: dict):
    """The two have different versions of torch, and add in a different order."""
    pair = vars(sd15.uneven)
    found = fetch(host, ROUTES[2], {**pair, **settings, "steps": 12}).json()
    files = [str(host.lora / f"{name}.safetensors") for name in pair.values()]
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main(["plan", *files, "--steps", "12", *options, "--report", "--json", str(tmp_path / "plan.json")]) == 0
    wanted = json.loads((tmp_path / "plan.json").read_text())
    assert found.keys() == wanted.keys() and found["gamma"] == pytest.approx(wanted["gamma"], rel=1e-5)
    assert found["report"]["sentence"] == wanted["report"]["sentence"]
    for one, two in zip(found["layers"], wanted["layers"], strict=True):
        assert one.keys() == two.keys() and [one.pop(word) for word in WORDS] == [two.pop(word) for word in WORDS]
        assert one == pytest.approx(two, rel=1e-4)


def test_a_map_is_what_a_job_shows(host: Host, sd15: Model):
    shown = host.run(klora(sd15.uneven, {"show_map": True, "alpha": 2})).images[-1]
    wanted = {**vars(sd15.uneven), "alpha": 2, "steps": PLAIN["steps"], "format": "png"}
    with Image.open(io.BytesIO(fetch(host, ROUTES[3], wanted).content)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), shown)


def test_asked_while_a_job_draws_it_changes_nothing(host: Host, sd15: Model):
    job, asked = klora(sd15.uneven, {"method": "np"}, steps=12), {**vars(sd15.uneven), "k": 5}
    alone, hooks = host.image(job), host.state()["hooks"]
    plan = fetch(host, ROUTES[2], asked).json()
    with ThreadPoolExecutor(4) as pool:
        drawn = pool.submit(host.image, job)
        answers = [pool.submit(fetch, host, ROUTES[2], asked | {"steps": 30 - i % 2}) for i in range(12)]
        assert all(answer.result().status_code == 200 for answer in answers)
        assert answers[0].result().json() == plan
        assert same(drawn.result(), alone)
    assert host.state()["hooks"] == hooks


# --- what is refused ---


def test_a_refusal_is_the_jobs(host: Host, sd15: Model, subtests: pytest.Subtests):
    other = vars(host.sdxl.attention)
    for wrong in (
        {"content": "nope"}, {"content": "", "style": "nope"}, {"content": 7}, {"alpha": "abc", "k": 0}, {"colour": 1},
        {"style": sd15.attention.content}, {"style": other["style"]}, {"scale": "s*", "alpha": 0},
    ):  # fmt: skip
        with subtests.test(wrong=str(wrong)):
            by_job = host.ask("/sdapi/v1/txt2img", klora(sd15.attention, wrong))
            by_plan = host.ask(ROUTES[2], {**vars(sd15.attention), **wrong})
            assert by_job.status == by_plan.status == 422
            said = by_plan.body["detail"].replace(", steps, seed", "")
            assert said == by_job.body["detail"] and by_plan.body.keys() == by_job.body.keys()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1001}, {"steps": "x"}, {"seed": -1}, {"steps": []}], ids=str)
def test_what_only_a_plan_has(host: Host, sd15: Model, wrong: dict):
    answer = host.ask(ROUTES[2], {**vars(sd15.attention), **wrong})
    assert answer.status == 422 and f"{next(iter(wrong))}: must be a whole number" in answer.body["detail"]


def test_what_is_said_of_a_huge_request_is_short(host: Host, sd15: Model, subtests: pytest.Subtests):
    for name, wrong in {
        "unknown": {f"setting number {i}": i for i in range(10_000)},
        "long": {"content": "x" * 200_000},
        "long name": {"y" * 200_000: 1},
        "all": dict.fromkeys(("alpha", "beta", "gamma", "k", "method"), "z" * 50_000),
    }.items():
        with subtests.test(name):
            answer = host.ask("/sdapi/v1/txt2img", klora(sd15.attention, wrong))
            assert answer.status == 422 and len(answer.text) < 3000, len(answer.text)
            answer = host.ask(ROUTES[2], {**vars(sd15.attention), **wrong})
            assert answer.status == 413 and len(answer.text) < 1000, len(answer.text)
    body = b"{" * (4 << 20)
    answer = requests.post(host.address + ROUTES[2], data=body, timeout=300)
    assert answer.status_code == 413 and f"has {len(body)} bytes" in answer.json()["detail"]


# --- where they are ---


def test_they_survive_a_reload_of_the_ui(host: Host, sd15: Model):
    before = fetch(host, ROUTES[2], vars(sd15.uneven)).json()
    host.reload_ui()
    assert fetch_each(host, vars(sd15.uneven)) == [200] * 4
    assert fetch(host, ROUTES[2], vars(sd15.uneven)).json() == before
    assert difference(host.image(klora(sd15.uneven)), host.image(plain())) > FAR


@pytest.fixture
def guarded_host(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = install(KINDS[kind], tmp_path_factory.mktemp(f"guarded_{kind}"), {"klora": REPOSITORY, **KINDS[kind].sizes})
    host.user = "ann:secret"
    yield from running(host)


def test_they_ask_for_the_apis_password(guarded_host: Host):
    pair = vars(guarded_host.sd15.attention)
    assert fetch_each(guarded_host, pair) == fetch_each(guarded_host, pair, "ann:wrong") == [401] * 4
    assert fetch_each(guarded_host, pair, "ann:secret") == [200] * 4
    assert fetch(guarded_host, ROUTES[2], {"content": "nope"}, "bob:secret").status_code == 401


@pytest.fixture
def host_without_api(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = install(KINDS[kind], tmp_path_factory.mktemp(f"closed_{kind}"), {"klora": REPOSITORY, **KINDS[kind].sizes})
    host.api, host.login = False, "ann:secret"
    yield from running(host)


def test_without_the_api_they_are_not_there(host_without_api: Host):
    found = fetch_each(host_without_api, vars(host_without_api.sd15.attention))
    asked = (("/sdapi/v1/samplers", None), ("/sdapi/v1/txt2img", {}))  # the WebUI's own, read and posted to
    own = [fetch(host_without_api, path, body).status_code for path, body in asked]
    assert found == [own[0]] * 2 + [own[1]] * 2 and 200 not in found


def test_the_live_map_is_there_without_the_api_and_asks_for_the_pages_login(host_without_api: Host):
    address, pair = host_without_api.address, host_without_api.sd15.attention
    values = [True, pair.content, pair.style]
    assert fetch(host_without_api, PATH, {"values": values}).status_code == 401
    with requests.Session() as user:
        user.post(f"{address}/login", data={"username": "ann", "password": "secret"}, timeout=60)
        for _ in range(100):
            answer = user.post(f"{address}{PATH}", json={"values": values, "steps": 7}, timeout=60)
            assert answer.status_code == 200, answer.text
            if "progress" not in answer.json():
                break
    assert answer.json()["steps"] == 7 and len(answer.json()["rows"]) > 10


# --- the client of others ---


def test_webuiapi_draws_with_it(host: Host, sd15: Model):
    api = webuiapi.WebUIApi(host="127.0.0.1", port=host.port)
    settings = {"enabled": True, **vars(sd15.uneven), "alpha": 2.0}
    try:
        drawn = api.txt2img(**PLAIN, **scripts(TITLE, settings))
        wanted = host.run(klora(sd15.uneven, {"alpha": 2.0}, scheduler="automatic"))
        assert same(np.asarray(drawn.image.convert("RGB"), dtype=np.int16), wanted.image)
        assert "K-LoRA alpha: 2.0" in drawn.info["infotexts"][0]
        with pytest.raises(RuntimeError, match="alpha: must be a number") as refusal:
            api.txt2img(**PLAIN, **scripts(TITLE, settings | {"alpha": "much"}))
        assert refusal.value.args[0] == 422
    finally:
        api.session.close()
