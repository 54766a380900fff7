"""Theorems of /klora/v1: there with the WebUI's API alone, behind its guard; it tells the command line's plan."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from klora_lib import __version__
from klora_lib.cli.main import main
from klora_lib.map import draw_plan, draw_svg
from klora_lib.map.told import tell_plan
from klora_lib.settings import BY_NAME, FIELDS
from klora_lib.webui.routes import LARGEST_BODY

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .jobs import job, plan_of, untouched, weights

PAIR = {"content": "subject", "style": "style"}
ROUTES = ["/klora/v1/schema", "/klora/v1/version", "/klora/v1/plan", "/klora/v1/map"]


@pytest.fixture
def client(host: FakeHost) -> TestClient:
    return TestClient(make_server(host))


def our_paths(app: Any) -> list[str]:
    return [path for route in app.router.routes if (path := getattr(route, "path", "")).startswith("/klora/v1")]


def ask(client: TestClient, path: str, **kw: Any) -> Any:
    method = client.get if path.endswith(("schema", "version")) else client.post
    return method(path, **kw) if method == client.get else method(path, json=PAIR, **kw)


# --- where they are ---


def test_without_the_api_there_are_none(host: FakeHost) -> None:
    app = make_server(host, api=False)
    assert our_paths(app) == [] and host.swallowed == []
    assert ask(TestClient(app), ROUTES[0]).status_code == 404


@pytest.mark.parametrize("path", ROUTES)
def test_they_ask_for_what_the_webuis_own_ask_for(host: FakeHost, path: str) -> None:
    client = TestClient(make_server(host, auth="ann:secret"))
    assert ask(client, path).status_code == 401
    assert ask(client, path, auth=("ann", "wrong")).status_code == 401
    assert ask(client, path, auth=("ann", "secret")).status_code == 200


def test_who_may_not_ask_is_told_nothing(host: FakeHost) -> None:
    """Neither whether a LoRA is listed, nor whether the body could be read."""
    client = TestClient(make_server(host, auth="ann:secret"))
    for body in (b"", b"{", b"x" * (LARGEST_BODY + 1), json.dumps({"content": "subject"}).encode()):
        assert client.post("/klora/v1/plan", content=body).status_code == 401


def test_reloading_the_ui_serves_them_once_more(host: FakeHost) -> None:
    """A WebUI makes another server then; one that were kept would have each of them once, with the new app's files."""
    app = make_server(host)
    old = host.app
    before = TestClient(app).post("/klora/v1/plan", json=PAIR).json()
    for callback in host.script_callbacks.registered["script_unloaded"]:
        callback()
    for found in host.script_callbacks.registered.values():
        found.clear()
    host.load_script()
    host.script_callbacks.registered["app_started"][0](None, app)
    assert sorted(our_paths(app)) == sorted(our_paths(make_server(host))) == sorted(ROUTES)
    assert TestClient(app).post("/klora/v1/plan", json=PAIR).json() == before
    assert host.app is not old and host.app.library.files and host.swallowed == []


# --- what they tell ---


def test_the_schema_is_the_settings_table(client: TestClient) -> None:
    found = client.get("/klora/v1/schema").json()
    assert [row["name"] for row in found["settings"]] == list(BY_NAME)
    for row, field in zip(found["settings"], FIELDS):
        assert (row["label"], row["help"], row["accepts"], row["infotext"]) == (
            field.label, field.help, field.accepts, field.infotext,
        )  # fmt: skip
        assert row["default"] == field.default and type(row["default"]) is type(field.default)
        assert tuple(row["methods"]) == field.methods
        assert (row["range"] is None) == (field.range is None)
        for value in [*(row["choices"] or ()), *(row["range"] or {}).values()][:2]:
            field.read(value)
    beta = next(row for row in found["settings"] if row["name"] == "beta")
    assert beta["range"] == {"minimum": 0, "maximum": 5, "step": 0.005} and beta["default"] is None
    assert {row["name"]: row["default"] for row in found["request"]} == {"steps": 30, "seed": 0, "format": "json"}


def test_the_version(host: FakeHost, client: TestClient) -> None:
    assert client.get("/klora/v1/version").json() == {"version": __version__, "webui": host.name, "trouble": None}
    delattr(host.networks, host.part)
    found = client.get("/klora/v1/version").json()
    assert found["webui"] is None and host.part in found["trouble"]
    assert host.part in client.post("/klora/v1/plan", json=PAIR).json()["detail"]


@pytest.mark.parametrize(
    "given",
    [{}, {"steps": 7, "alpha": 2, "layers": "attention"}, {"method": "random", "seed": 2**62 + 1}, {"method": "est"},
     {"method": "np", "mu": 3}, {"content": "subject_full", "k": "all", "balance": -1}, {"style": "conv_only"}],
)  # fmt: skip
def test_a_plan_is_the_command_lines(host: FakeHost, client: TestClient, tmp_path: Path, given: dict[str, Any]) -> None:
    wanted = {**PAIR, **given}
    found = client.post("/klora/v1/plan", json=wanted)
    assert found.status_code == 200
    files = [host.networks.available_networks[wanted.pop(role)].filename for role in PAIR]
    options = [part for name, value in wanted.items() for part in (f"--{name}", str(value))]
    assert main(["plan", *files, *options, "--report", "--json", str(tmp_path / "plan.json")]) == 0
    assert found.json() == json.loads((tmp_path / "plan.json").read_text())


def test_a_map_is_the_plans(host: FakeHost, client: TestClient) -> None:
    given = {**PAIR, "steps": 6, "alpha": 2}
    plan = plan_of(host, job(host, {"alpha": 2}), 6)
    table, told_beside = plan.table(6), tell_plan(plan)
    told = client.post("/klora/v1/plan", json=given).json()
    found = client.post("/klora/v1/map", json=given).json()
    assert found["gamma"] == told["gamma"] and found["steps"] == 6
    assert found["layers"] == [{name: row[name] for name in ("name", "selection")} for row in told["layers"]]
    png = client.post("/klora/v1/map", json={**given, "format": "png"})
    assert png.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(png.content)).tobytes() == draw_plan(table, *told_beside).tobytes()
    svg = client.post("/klora/v1/map", json={**given, "format": "svg"})
    assert svg.headers["content-type"].startswith("image/svg+xml") and svg.text == draw_svg(table, *told_beside)


# --- beside a job ---


def test_a_job_and_the_routes_share_what_they_read(host: FakeHost, client: TestClient) -> None:
    before = weights(host)
    client.post("/klora/v1/plan", json=PAIR)
    kept = [dict(shelf) for shelf in (host.app.library.files, host.app.library.pairs, host.app.library.scores)]
    process_images(job(host))
    now = [dict(shelf) for shelf in (host.app.library.files, host.app.library.pairs, host.app.library.scores)]
    assert all(a.keys() <= b.keys() and all(a[key] is b[key] for key in a) for a, b in zip(kept, now))
    assert len(now[0]) == 2 and untouched(host, before)


@pytest.mark.parametrize("method", ["klora", "np", "random"])
def test_asked_while_a_job_samples_it_changes_nothing(host: FakeHost, client: TestClient, method: str) -> None:
    before, wanted = weights(host), process_images(job(host, {"method": method})).images[0]
    alone = client.post("/klora/v1/plan", json={**PAIR, "method": "est", "content": "subject_full"}).json()
    answers: list[Any] = []

    def look(denoiser: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            given = {**PAIR, "method": "est", "content": "subject_full"}
            answers.append(pool.submit(client.post, "/klora/v1/plan", json=given).result(60).json())

    host.on_call.append(look)
    assert torch.equal(process_images(job(host, {"method": method})).images[0], wanted)
    assert len(answers) == 6 and all(answer == alone for answer in answers) and untouched(host, before)


def test_nothing_is_computed_on_the_models_device(host: FakeHost, client: TestClient) -> None:
    wanted = client.post("/klora/v1/plan", json=PAIR).json()
    host.app.library.__init__()
    host.devices.device = torch.device("meta")  # on which nothing has a value
    assert client.post("/klora/v1/plan", json=PAIR).json() == wanted
    assert client.post("/klora/v1/map", json={**PAIR, "method": "np", "format": "png"}).status_code == 200


def test_files_that_a_job_read_in_inference_mode_can_be_planned_with(host: FakeHost, client: TestClient) -> None:
    with torch.inference_mode():
        process_images(job(host, {"method": "np"}))
    for method in ("np", "klora"):
        assert client.post("/klora/v1/plan", json={**PAIR, "method": method}).status_code == 200


def test_many_requests_at_once(host: FakeHost, client: TestClient) -> None:
    def plan(i: int) -> Any:
        return client.post("/klora/v1/map", json={**PAIR, "k": 1 + i % 3, "steps": 5}).json()

    alone = [plan(i) for i in range(3)]
    host.app.library.__init__()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(plan, range(18))) == alone * 6
