"""Theorems of the live map's route: a job's plan, behind the page's login, and nothing is computed for nobody."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from klora_lib.errors import LoraFileError
from klora_lib.map.colours import PALETTES, format_colour
from klora_lib.map.describe import describe_layers, describe_map
from klora_lib.map.layout import arrange
from klora_lib.rule import cache
from klora_lib.rule.cache import Library
from klora_lib.settings import FIELDS, Settings
from klora_lib.webui import warm
from klora_lib.webui.live import PATH
from klora_lib.webui.routes import LARGEST_BODY
from klora_lib.webui.warm import Ready, Waiting, Warmer

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .jobs import job

GREEN = PALETTES["blue and green"]


@pytest.fixture
def client(host: FakeHost) -> TestClient:
    return TestClient(make_server(host, api=False))


def values(**given: Any) -> list[Any]:
    """The panel's, in its order."""
    chosen = {"enabled": True, "content": "subject", "style": "style", **given}
    return [chosen.get(field.name, "" if field.default is None else field.default) for field in FIELDS]


def ask(client: TestClient, beside: dict[str, Any] | None = None, **given: Any) -> Any:
    """The answer when it is more than the progress."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.post(PATH, json={"values": values(**given), **(beside or {})})
        assert answer.status_code == 200, answer.text
        if "progress" not in answer.json() or time.monotonic() > deadline:
            return answer.json()


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


# --- waiting ---


class Slow:
    """Scoring that goes on by one layer when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, layers: int = 4):
        self.steps, self.seen, self.layers = threading.Semaphore(0), threading.Semaphore(0), layers
        monkeypatch.setattr(cache, "score_units", self.score)
        self.original = cache.Scores

    def score(self, units: Any, k: Any, device: Any, free: Any = None, weights: Any = None, watch: Any = None) -> Any:
        for _ in range(self.layers):
            watch()
            self.seen.release()
            assert self.steps.acquire(timeout=30)
        from klora_lib.rule.scoring import score_units

        return score_units(units, k, device)


def test_a_pair_that_is_not_ready_tells_how_far_it_is(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    found = []
    for _ in range(slow.layers):
        found.append(client.post(PATH, json={"values": values()}).json()["progress"])
        slow.steps.release()
        assert slow.seen.acquire(timeout=30)
    assert found == sorted(found) and found[-1] > 0 and all(0 <= x <= 1 for x in found)
    assert "patterns" in ask(client)


def test_it_can_be_cancelled(host: FakeHost, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    client.post(PATH, json={"values": values()})
    assert client.post(PATH, json={"values": values(), "stop": True}).json() == {"stopped": True}
    slow.steps.release(slow.layers)
    wait_for_threads()
    assert not host.app.library.scores
    monkeypatch.undo()
    assert "patterns" in ask(client)


def test_who_does_not_ask_any_more_is_not_computed_for(
    host: FakeHost, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    monkeypatch.setattr(warm, "PATIENCE", 0.0)
    client.post(PATH, json={"values": values()})
    slow.steps.release(slow.layers)
    wait_for_threads()
    assert not host.app.library.scores


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == warm.THREAD:
            thread.join(30)
            assert not thread.is_alive()


def test_a_refusal_is_told_whenever_it_comes(
    client: TestClient, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it comes between two requests: the pair is not begun anew, and the page does not wait for ever."""
    read, begun = host.app.library.read_both, []

    def read_slowly(*listed: Any) -> Any:
        begun.append(listed)
        time.sleep(0.5)
        raise LoraFileError("is no LoRA").blame("content")

    monkeypatch.setattr(host.app.library, "read_both", read_slowly)
    assert "progress" in client.post(PATH, json={"values": values()}).json()
    wait_for_threads()
    assert client.post(PATH, json={"values": values()}).json() == {"refused": "content: is no LoRA"}
    assert len(begun) == 1
    monkeypatch.setattr(host.app.library, "read_both", read)
    assert "patterns" in ask(client)


def test_a_pair_that_only_the_model_tells_is_refused(host: FakeHost, client: TestClient, loras: Path) -> None:
    key, path = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", loras / "turner.safetensors"
    save_file({f"{key}.oft_blocks": torch.zeros(2, 4, 4), f"{key}.alpha": torch.tensor(1.0)}, path)
    try:
        host.networks.list_available_networks()
        for method in ("klora", "est", "np", "direct"):
            said = ask(client, content="turner", method=method)["refused"]
            assert said.startswith("content: 'turner' is an OFT") and "can be known only with the model" in said
    finally:
        path.unlink()


def test_a_job_that_wants_the_same_pair_does_not_wait_for_the_map(
    host: FakeHost, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map gives it up at the next layer; the job scores it, and then the map has it too."""
    wanted = process_images(job(host)).images[0]
    host.app.library.__init__()
    score, layers = cache.score_units, []

    def score_slowly(units: Any, k: Any, device: Any, free: Any = None, weights: Any = None, watch: Any = None) -> Any:
        if threading.current_thread().name == warm.THREAD:
            for layer in range(200):
                layers.append(layer)
                watch()
                time.sleep(0.05)
        return score(units, k, device)

    monkeypatch.setattr(cache, "score_units", score_slowly)
    client.post(PATH, json={"values": values()})
    assert layers
    monkeypatch.setattr(warm, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(host.shared.state, "job", "txt2img", raising=False)
    assert torch.equal(process_images(job(host)).images[0], wanted)
    wait_for_threads()
    assert len(layers) < 100
    assert "patterns" in ask(client)


def test_a_job_has_the_first_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one runs, a pause follows each layer; without one, none does."""
    naps: list[float] = []
    monkeypatch.setattr(warm.time, "sleep", naps.append)
    drawing = False
    task = warm.Task(Library(), (("", ""), ("", "")), Settings(), lambda: drawing)
    task.watch()
    assert naps == []
    drawing = True
    task.last = time.monotonic() - 0.1
    task.watch()
    assert len(naps) == 1 and 0.2 <= naps[0] <= warm.LONGEST_PAUSE


def test_only_so_many_pairs_are_prepared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(warm.Task, "prepare", lambda task: go.wait(30) and Ready(*[None] * 4))
    warmer = Warmer(Library(), lambda: False)
    pairs: list[warm.Files] = [((f"c{i}", ""), (f"s{i}", "")) for i in range(warm.MOST + 1)]
    assert [warmer.ask(pair, Settings(), 0) for pair in pairs] == [Waiting(0.0)] * len(pairs)
    assert len(warmer.tasks) == warm.MOST
    go.set()
    wait_for_threads()
    assert warmer.ask(pairs[0], Settings(), 30) == warmer.ask(pairs[-1], Settings(), 30) == Ready(*[None] * 4)
