"""Theorems of a damaged installation: what cannot be loaded refuses the job in one sentence, and the panel says it."""

from __future__ import annotations

import sys

import pytest
from fastapi.testclient import TestClient

from klora_lib.webui import boot
from klora_lib.webui.live import PATH

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .asking import ask, values
from .jobs import job, plain, untouched, watch, weights

REST = "install the extension again and restart the WebUI"


@pytest.mark.parametrize("part", ["webui.job", "webui.wishes", "rule.scoring", "lora.peft", "engine.layers"])
def test_a_job_is_refused_before_it_samples(host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)  # so that importing it fails
    before, calls = weights(host), watch(host)
    with pytest.raises(Exception, match="K-LoRA: its file") as refusal:
        process_images(job(host))
    sentence = str(refusal.value)
    assert getattr(refusal.value, "status_code", None) == 422
    assert (
        " cannot be loaded (ModuleNotFoundError: " in sentence
        and f"klora_lib.{part}" in sentence
        and sentence.endswith(REST)
    )
    assert calls == [] and host.samplers == [] and untouched(host, before) and host.swallowed == []


def test_once_it_can_be_loaded_jobs_run(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = process_images(job(host)).images
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "klora_lib.webui.job", None)
        with pytest.raises(Exception, match="K-LoRA: its file"):
            process_images(job(host))
    assert all((one == other).all() for one, other in zip(process_images(job(host)).images, wanted, strict=True))


def test_a_job_without_k_lora_needs_nothing_of_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = process_images(plain(host)).images
    for part in ("webui.job", "webui.listed", "rule.scoring", "lora.file", "engine.layers", "hosts.a1111", "hosts.forge"):
        monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)
    found = process_images(plain(host)).images
    assert host.swallowed == [] and all((one == other).all() for one, other in zip(found, wanted, strict=True))


def test_the_panel_and_the_routes_say_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "klora_lib.hosts.a1111", None)
    told = boot.describe_trouble()
    assert told.startswith("K-LoRA cannot run here: its file klora_lib.hosts.a1111 cannot be loaded") and REST in told
    assert boot.list_loras() == []
    answer = TestClient(make_server(host)).get("/klora/v1/version").json()
    assert answer["webui"] is None and REST in answer["trouble"]


@pytest.mark.parametrize("part", ["webui.maps", "map.draw"])
def test_a_map_that_cannot_be_drawn_is_told_before_the_image(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    for module in ("klora_lib.webui.maps", f"klora_lib.{part}"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)
    with pytest.raises(Exception, match="K-LoRA: its file klora_lib.webui.maps cannot be loaded"):
        process_images(job(host, {"show_map": True}))
    assert host.samplers == []
    assert process_images(job(host)).images  # which needs none


@pytest.mark.parametrize("part", ["webui.live_map", "webui.warm", "map.layout", "engine.fusion"])
def test_the_live_map_says_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    wanted = ask(TestClient(make_server(host, api=False)))
    with monkeypatch.context() as broken:
        for module in ("webui.live_map", "webui.warm", part):
            broken.delitem(sys.modules, f"klora_lib.{module}", raising=False)
        broken.setitem(sys.modules, f"klora_lib.{part}", None)
        client = TestClient(make_server(host, api=False))
        told = client.post(PATH, json={"values": values()}).json()["refused"]
        assert told.startswith("its file klora_lib.webui.live_map cannot be loaded (") and told.endswith(REST)
    assert ask(client) == wanted  # once it can be loaded


@pytest.mark.parametrize("part", ["map.draw", "map.svg", "map.told"])
def test_a_picture_that_is_asked_for_says_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)
    client = TestClient(make_server(host))
    ending = "svg" if part == "map.svg" else "png"
    answer = client.post("/klora/v1/map", json={"content": "subject", "style": "style", "steps": 4, "format": ending})
    assert answer.status_code == 422 and f"its file klora_lib.{part} cannot be loaded (" in answer.json()["detail"]


@pytest.mark.parametrize("part", ["webui.save", "export.save"])
def test_the_button_save_says_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.delitem(sys.modules, "klora_lib.webui.save", raising=False)
    monkeypatch.delitem(sys.modules, "klora_lib.export", raising=False)
    monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)
    told = host.app.save(values(), "both", 1, 20, False)
    assert told.startswith("Nothing was saved: its file klora_lib.webui.save cannot be loaded (") and REST in told


@pytest.mark.parametrize("part", ["webui.listed", "lora.facts", "lora.peft"])
def test_what_stands_under_the_pickers_says_it(host: FakeHost, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(sys.modules, f"klora_lib.{part}", None)
    told = host.app.describe_lora("subject") + host.app.check_pair("subject", "style")
    assert " cannot be loaded (" in told and f"klora_lib.{part}" in told and "klora-trouble" in told
