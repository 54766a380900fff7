"""Theorems of what /klora/v1 refuses: in a job's own words, and however large the request is, in short ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from klora_lib.settings import BY_NAME
from klora_lib.webui.routes import LARGEST_BODY

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from ..fakes.server import make_server
from .jobs import job

PAIR = {"content": "subject", "style": "style"}


@pytest.fixture
def client(host: FakeHost) -> TestClient:
    return TestClient(make_server(host))


def refusal(client: TestClient, given: Any, path: str = "/klora/v1/plan", status: int = 422, **kw: Any) -> str:
    answer = client.post(path, json=given, **kw) if "content" not in kw else client.post(path, **kw)
    assert answer.status_code == status, answer.text[:500]
    assert answer.json()["error"] == "KLoraRefused" and answer.json()["detail"].startswith("K-LoRA: ")
    return str(answer.json()["detail"]).removeprefix("K-LoRA: ")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"content": "nobody"}, "content: there is no LoRA named 'nobody' among the 6 listed"),
        ({"content": "", "style": "nobody"},
         "content: no LoRA is chosen; style: there is no LoRA named 'nobody' among the 6 listed"),
        ({"style": "subject"}, "style: must be another LoRA than content, both are 'subject'"),
        ({"content": 7}, "content: must be the name of a LoRA as the WebUI lists it, not 7"),
        ({"content": ["subject"]}, "content: must be the name of a LoRA as the WebUI lists it, not ['subject']"),
        ({"steps": 0}, "steps: must be a whole number from 1 to 1000, not 0"),
        ({"steps": 1001}, "steps: must be a whole number from 1 to 1000, not 1001"),
        ({"steps": 2.5}, "steps: must be a whole number from 1 to 1000, not 2.5"),
        ({"steps": True}, "steps: must be a whole number from 1 to 1000, not True"),
        ({"steps": None}, "steps: must be a whole number from 1 to 1000, not None"),
        ({"steps": {}}, "steps: must be a whole number from 1 to 1000, not {}"),
        ({"steps": float("nan")}, "steps: must be a whole number from 1 to 1000, not nan"),
        ({"seed": -1}, "seed: must be a whole number from 0 to 9223372036854775807, not -1"),
        ({"seed": 2**63}, "seed: must be a whole number from 0 to 9223372036854775807, not 9223372036854775808"),
        ({"alpha": "much", "steps": "many"}, "alpha: must be a number from 0 to 1e+09, not 'much'; steps: must be a "
                                             "whole number from 1 to 1000, not 'many'"),
        ({"scale": "s*", "alpha": 0}, "alpha: must be above 0 with scale s*, which is taken modulo alpha"),
        ({"format": "png"}, f"'format': is not a K-LoRA setting; there are {', '.join(BY_NAME)}, steps, seed"),
        ({"stepz": 3, "alfa": 1},
         f"'stepz'; 'alfa': are not K-LoRA settings; there are {', '.join(BY_NAME)}, steps, seed"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused_as_a_job_is(client: TestClient, given: dict[str, Any], sentence: str) -> None:
    def post(body: dict[str, Any]) -> str:
        text = json.dumps(body)  # which, unlike the client, can write NaN
        return refusal(client, None, content=text.encode())

    assert post({**PAIR, **given}) == sentence


def test_a_wrong_format(client: TestClient) -> None:
    for value in ("gif", 7, ["png"], None):
        said = refusal(client, {**PAIR, "format": value}, "/klora/v1/map")
        assert said == f"format: must be one of json, png, svg, not {value!r}"


def test_a_pair_that_does_not_fit_is_refused_as_a_job_is(host: FakeHost, client: TestClient) -> None:
    said = refusal(client, {**PAIR, "style": "other_family"})
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011
        process_images(job(host, {"style": "other_family"}))
    assert str(caught.value) == f"K-LoRA: {said}" and "are made for different models" in said


@pytest.fixture
def file(host: FakeHost, loras: Path) -> Iterator[Path]:
    """A file to write, which is listed as ``odd``, and goes again."""
    path = loras / "odd.safetensors"
    shutil.copy(loras / "subject.safetensors", path)
    host.networks.list_available_networks()
    yield path
    path.unlink()


def test_a_pair_that_needs_the_model_is_refused(file: Path, client: TestClient) -> None:
    key = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    save_file({f"{key}.oft_blocks": torch.zeros(2, 4, 4), f"{key}.alpha": torch.tensor(1.0)}, file)
    said = refusal(client, {**PAIR, "content": "odd"})
    assert said.startswith("content: 'odd' is an OFT") and "can be known only with the model" in said


def test_a_file_that_cannot_be_read(file: Path, client: TestClient) -> None:
    file.write_bytes(b"no LoRA")
    assert refusal(client, {**PAIR, "content": "odd"}).startswith("content: 'odd' ")
    file.unlink()
    assert refusal(client, {**PAIR, "content": "odd"}) == "content: 'odd' does not exist"
    file.touch()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xfa", b"[" * 20_000, b"9" * 5000, b"[]", b"7", b"null", b'"a"'])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    assert len(refusal(client, None, content=body)) < 200


def test_a_body_has_a_bound(client: TestClient) -> None:
    body = json.dumps(PAIR).encode()
    assert client.post("/klora/v1/plan", content=body.ljust(LARGEST_BODY)).status_code == 200
    said = refusal(client, None, status=413, content=body.ljust(LARGEST_BODY + 1))
    assert said == f"the request has {LARGEST_BODY + 1} bytes, and may have {LARGEST_BODY}"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HUGE: dict[str, Callable[[], dict[str, Any]]] = {
    "unknown names": lambda: {f"setting number {i}": i for i in range(10_000)},
    "a long unknown name": lambda: {"x" * 200_000: 1},
    "a long LoRA": lambda: {"content": "x" * 200_000},
    "two long LoRAs": lambda: {"content": "\x00" * 200_000, "style": "\\" * 200_000},
    "a long list": lambda: {name: list(range(50_000)) for name in BY_NAME},
    "a long word": lambda: {name: "é" * 200_000 for name in BY_NAME if name not in PAIR},
    "a deep list": lambda: {name: nested(900) for name in BY_NAME},
    "a large object": lambda: {"alpha": {str(i): "y" * 1000 for i in range(1000)}},
    "everything": lambda: {**dict.fromkeys(BY_NAME, "z" * 9000), **{f"{i}" * 300: i for i in range(1000)}},
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGE)
def test_what_is_said_of_a_huge_request_is_short(host: FakeHost, client: TestClient, kind: str) -> None:
    """By the WebUI's own route too, which has no bound for a body."""
    given = {"enabled": True, **PAIR, **HUGE[kind]()}
    wanted = {"prompt": "a cat", "alwayson_scripts": {"K-LoRA": {"args": [given]}}}
    answer = client.post("/sdapi/v1/txt2img", json=wanted)
    assert answer.status_code == 422 and answer.json()["detail"].startswith("K-LoRA: ")
    detail = answer.json()["detail"]
    assert len(detail) < (700 if len(set(given) & set(BY_NAME)) < 5 else 4000), len(detail)
    if len(given) > 1000:
        assert "; and " in detail and " more: are not K-LoRA settings" in detail
    body = json.dumps(given).encode()
    status = 413 if len(body) > LARGEST_BODY else 422
    assert len(refusal(client, None, status=status, content=body)) < 4000


@pytest.mark.parametrize("length", [200_000])
def test_a_long_tag_and_a_long_positional_name(host: FakeHost, client: TestClient, length: int) -> None:
    long = "y" * length
    by_name = [{"enabled": True, **PAIR}]
    for prompt, args in ((f"a cat <lora:subject:1:{long}=2>", by_name), ("a cat", [True, long, "style"])):
        wanted = {"prompt": prompt, "alwayson_scripts": {"K-LoRA": {"args": args}}}
        answer = client.post("/sdapi/v1/txt2img", json=wanted)
        assert answer.status_code == 422 and len(answer.text) < 1500


@pytest.mark.parametrize("start", ["", "lora_unet_"])
def test_a_file_whose_tensors_have_long_names(file: Path, client: TestClient, start: str) -> None:
    save_file({f"{start}{'w' * 90_000}{i}.lora_up.weight": torch.ones(2, 2) for i in range(5)}, file)
    assert len(refusal(client, {**PAIR, "content": "odd"})) < 1500
    names = [f"{start}{'w' * 90_000}{i}.lora_{part}.weight" for i in range(5) for part in ("up", "down")]
    save_file({name: torch.ones(2, 2) for name in names}, file)
    wanted = {"prompt": "a cat", "alwayson_scripts": {"K-LoRA": {"args": [{"enabled": True, **PAIR, "content": "odd"}]}}}
    answer = client.post("/sdapi/v1/txt2img", json=wanted)
    assert answer.status_code == 422 and len(answer.json()["detail"]) < 1000
