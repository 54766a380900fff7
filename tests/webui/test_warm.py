"""Theorems of reading and scoring in the background: it tells how far it is, and nothing is computed for nobody."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from klora_lib.errors import LoraFileError
from klora_lib.rule import scoring
from klora_lib.rule.cache import Library
from klora_lib.settings import Settings
from klora_lib.webui import warm
from klora_lib.webui.live import PATH
from klora_lib.webui.warm import Ready, Waiting, Warmer

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .asking import ask, values
from .jobs import job


@pytest.fixture
def client(host: FakeHost) -> TestClient:
    return TestClient(make_server(host, api=False))


class Slow:
    """Scoring that goes on by one layer when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, layers: int = 4):
        self.steps, self.seen, self.layers = threading.Semaphore(0), threading.Semaphore(0), layers
        self.original = scoring.score_units
        monkeypatch.setattr(scoring, "score_units", self.score)

    def score(self, units: Any, k: Any, device: Any, free: Any = None, weights: Any = None, watch: Any = None) -> Any:
        for _ in range(self.layers):
            watch()
            self.seen.release()
            assert self.steps.acquire(timeout=30)
        return self.original(units, k, device)


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
    score, layers = scoring.score_units, []

    def score_slowly(units: Any, k: Any, device: Any, free: Any = None, weights: Any = None, watch: Any = None) -> Any:
        if threading.current_thread().name == warm.THREAD:
            for layer in range(200):
                layers.append(layer)
                watch()
                time.sleep(0.05)
        return score(units, k, device)

    monkeypatch.setattr(scoring, "score_units", score_slowly)
    client.post(PATH, json={"values": values()})
    while not layers:
        time.sleep(0.01)
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
