"""Theorems: every example of docs/api.md does what the document says of it."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from klora_lib.settings import FIELDS

from ..examples import DOCUMENT, WEBUI, read_commands, read_examples
from ..fakes.host import FakeHost
from ..fakes.server import make_server


@pytest.fixture
def client(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Answers in the place of ``requests``; files are written into a folder of the test's own."""
    client = TestClient(make_server(host), base_url=WEBUI)
    monkeypatch.setitem(sys.modules, "requests", types.SimpleNamespace(get=client.get, post=client.post))
    monkeypatch.chdir(tmp_path)
    return client


def read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_python_examples(client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, schema, plan, picture, wrong = read_examples("python")
    exec(image, {})
    assert read_size(tmp_path / "cat.png") == (4, 4)
    exec(schema, {})
    assert capsys.readouterr().out.splitlines() == [f"{field.name}: {field.help}" for field in FIELDS]
    exec(plan, {})
    sentence, *rows = capsys.readouterr().out.splitlines()
    assert "in most layers" in sentence and rows and all(re.fullmatch(r"[CSBN]{20} \S+", row) for row in rows)
    exec(picture, {})
    assert read_size(tmp_path / "map.png")[0] > 20
    exec(wrong, {})
    said = capsys.readouterr().out.strip()
    assert said.startswith("422 K-LoRA: alpha: must be a number") and said.removeprefix("422 ") in DOCUMENT.read_text()


def test_the_curl_examples(client: TestClient, tmp_path: Path) -> None:
    """Read as curl reads them; the live test calls curl itself."""
    answers = []
    for command in read_commands():
        program, silent, url, *rest = shlex.split(command)
        assert (program, silent) == ("curl", "-s")
        options = dict(zip(rest[::2], rest[1::2], strict=True))
        assert options.get("-H", "Content-Type: application/json") == "Content-Type: application/json"
        answer = client.post(url, json=json.loads(options["-d"])) if "-d" in options else client.get(url)
        assert answer.status_code == 200
        answers.append(answer)
    version, schema, plan, picture = answers
    assert version.json()["trouble"] is None and len(schema.json()["settings"]) == len(FIELDS)
    assert plan.json()["steps"] == 20 and ET.fromstring(picture.text).tag.endswith("svg")


def test_an_image_by_the_document_is_ours(host: FakeHost, client: TestClient) -> None:
    settings = {"enabled": True, "content": "subject", "style": "style"}
    job = {"prompt": "a cat", "alwayson_scripts": {"K-LoRA": {"args": [settings]}}}
    drawn = client.post("/sdapi/v1/txt2img", json=job).json()
    assert "K-LoRA content: subject" in json.loads(drawn["info"])["infotexts"][0]
