"""Theorems of the live map's route: a job's plan, behind the page's login, and nothing is computed for nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

from klora_lib.map.colours import PALETTES, format_colour
from klora_lib.map.describe import describe_layers, describe_map
from klora_lib.map.layout import arrange
from klora_lib.settings import Settings
from klora_lib.webui.live import PATH
from klora_lib.webui.routes import LARGEST_BODY

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .asking import ask, values
from .jobs import job

GREEN = PALETTES["blue and green"]


@pytest.fixture
def client(host: FakeHost) -> TestClient:
    return TestClient(make_server(host, api=False))


# --- where it is ---


def test_it_is_there_without_the_api_and_once(host: FakeHost) -> None:
    app = make_server(host, api=False)
    host.script_callbacks.registered["app_started"][0](None, app)
    assert [getattr(route, "path", "") for route in app.router.routes].count(PATH) == 1
    assert host.swallowed == []


def test_it_asks_for_the_pages_login(host: FakeHost) -> None:
    app = FastAPI()

    def login_check() -> None:
        raise HTTPException(401, "Not authenticated")

    app.add_api_route("/config", lambda: {}, dependencies=[Depends(login_check)])
    for callback in host.script_callbacks.registered["app_started"]:
        callback(None, app)
    for body in (b"", json.dumps({"values": values()}).encode(), b"x" * (LARGEST_BODY + 1)):
        assert TestClient(app).post(PATH, content=body).status_code == 401


def test_without_the_pages_route_there_is_none(host: FakeHost) -> None:
    """Whether a login belongs to the page cannot be known there."""
    app = FastAPI()
    for callback in host.script_callbacks.registered["app_started"]:
        callback(None, app)
    assert TestClient(app).post(PATH, json={"values": values()}).status_code == 404


# --- what it tells ---


@pytest.mark.parametrize("given", [{}, {"alpha": 2.5, "balance": -0.5}, {"method": "est"}, {"method": "switch"}], ids=str)
def test_a_map_is_the_plan_of_the_job(host: FakeHost, client: TestClient, given: dict[str, Any]) -> None:
    found = ask(client, {"steps": 7}, **given)
    pair, plan = pair_and_plan(host, given)
    rows = arrange([unit.name for unit in plan.units])
    assert {**describe_map(plan, plan.table(7), GREEN, rows), "layers": describe_layers(plan, rows)}.items() <= found.items()
    assert found["sentence"] == host.app.library.explain(pair, plan, 7).sentence
    drawn = job(host, given, steps=7)
    process_images(drawn)
    assert torch.equal(drawn.klora_job.passes[0].table(), plan.table(7))


def pair_and_plan(host: FakeHost, given: dict[str, Any]) -> Any:
    from klora_lib.hosts import detect
    from klora_lib.webui.listed import plan_listed

    settings = Settings(enabled=True, content="subject", style="style", **given)
    return plan_listed(detect(), host.app.library, settings, 7)[1:]


def test_img2img_begins_where_its_noise_begins(host: FakeHost, client: TestClient) -> None:
    """8 steps at 0.5 are 5 calls, from progress 0.5 on."""
    _, plan = pair_and_plan(host, {})
    found = ask(client, {"steps": 8, "denoising": 0.5})
    table = plan.over([0.5 + 0.5 * t / 5 for t in range(5)])
    assert describe_map(plan, table, GREEN, arrange([unit.name for unit in plan.units])).items() <= found.items()


def test_by_noise_the_axis_is_no_count_of_steps(client: TestClient) -> None:
    assert ask(client, progress="noise")["axis"] and not ask(client)["axis"]


def test_the_layers_are_told_once(client: TestClient) -> None:
    first = ask(client)
    assert first["layers"] is not None
    assert ask(client, {"known": first["key"]}, alpha=2)["layers"] is None
    assert ask(client, {"known": first["key"]}, content="subject_full")["layers"] is not None


def test_the_colours_are_the_settings_pages(host: FakeHost, client: TestClient) -> None:
    host.shared.opts.data = {"klora_map_colours": "blue and orange"}
    assert ask(client)["colours"] == [format_colour(c) for c in PALETTES["blue and orange"]]


@pytest.mark.parametrize(
    ("given", "beside", "said"),
    [
        ({"content": "nope"}, {}, "content: "),
        ({"content": "/etc/passwd"}, {}, "content: "),
        ({"style": "subject"}, {}, "style: "),
        ({"alpha": "much"}, {}, "alpha: must be"),
        ({}, {"steps": 0}, "steps: must be"),
        ({}, {"denoising": 2}, "denoising: must be"),
        ({}, {"values": 3}, "values: must be"),
        ({}, {"colour": 3}, "'colour'"),
    ],
    ids=str,
)
def test_a_refusal_is_a_sentence_and_no_fault(
    client: TestClient, given: dict[str, Any], beside: dict[str, Any], said: str
) -> None:
    found = ask(client, beside, **given)
    assert said in found["refused"] and len(found) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"values": [NaN]}'])
def test_what_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(PATH, content=body)
    assert answer.status_code in (200, 422) and len(answer.text) < 1000


def test_a_large_body_is_not_read(client: TestClient) -> None:
    assert client.post(PATH, content=b" " * (LARGEST_BODY + 1)).status_code == 413


# --- beside a job ---


def test_asked_while_a_job_samples_it_changes_nothing(host: FakeHost, client: TestClient) -> None:
    wanted = process_images(job(host)).images[0]
    alone = ask(client, {"steps": 5}, content="subject_full")
    answers: list[Any] = []
    host.on_call.append(lambda denoiser: answers.append(ask(client, {"steps": 5}, content="subject_full")))
    assert torch.equal(process_images(job(host)).images[0], wanted)
    assert len(answers) == 6 and all(answer == alone for answer in answers)


def test_nothing_is_computed_on_the_models_device(host: FakeHost, client: TestClient) -> None:
    wanted = ask(client)
    host.app.library.__init__()
    host.devices.device = torch.device("meta")  # on which nothing has a value
    assert ask(client) == wanted
