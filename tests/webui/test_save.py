"""*Save as LoRA*: what the panel does is in a file that the WebUI lists, or one sentence says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from klora_lib.hosts import detect
from klora_lib.lora.file import read_lora
from klora_lib.settings import FIELDS

from ..fakes.host import FakeHost
from ..fakes.processing import process_images
from .jobs import job, untouched, weights


@pytest.fixture
def folder(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is saved; the files that the WebUI lists are shared by all tests."""
    monkeypatch.setattr(type(detect()), "get_lora_folder", lambda self: str(tmp_path))
    return tmp_path


def press(
    host: FakeHost, name: Any = "fused", segments: Any = 1, steps: Any = 20, overwrite: Any = False, **given: Any
) -> str:
    """The text under the button, after it was pressed with these values in the panel."""
    values = {"content": "subject", "style": "style", "method": "direct", "beta": 0.5, **given}
    args = [values.get(field.name, "" if field.default is None else field.default) for field in FIELDS]
    return host.app.save(args, name, segments, steps, overwrite)


def test_what_the_panel_does_is_saved(host: FakeHost, folder: Path) -> None:
    before = weights(host)
    told = press(host, content_weight=0.5)
    assert told.startswith("Saved **fused** (") and told.endswith("```\nuse it as <lora:fused:1>\n```")
    one, two = (read_lora(host.networks.available_networks[name].filename) for name in ("subject", "style"))
    got = read_lora(folder / "fused.safetensors")
    for layer, delta in got.modules.items():
        parts = [w * file.modules[layer].dense() for w, file in ((0.5, one), (1.0, two)) if layer in file.modules]
        assert torch.allclose(delta.dense(), sum(parts), atol=1e-5)
    assert untouched(host, before)


def test_a_saved_file_is_listed(host: FakeHost, folder: Path) -> None:
    listed: list[str] = []
    refresh = host.networks.list_available_networks
    host.networks.list_available_networks = lambda: listed.append("refreshed")
    try:
        press(host)
    finally:
        host.networks.list_available_networks = refresh
    assert listed == ["refreshed"]


def test_segments_are_files_with_a_text_to_paste(host: FakeHost, folder: Path) -> None:
    told = press(host, method="klora", segments=3, steps=12)
    assert "**fused-1** (" in told and "in Forge Neo" in told and "<lora:fused-2:[0@0,0@0.33333,1@0.33333" in told
    assert {path.name for path in folder.iterdir()} == {f"fused-{n}.safetensors" for n in (1, 2, 3)}


@pytest.mark.parametrize(("given", "told"), [
    ({"method": "klora"}, "method: 'klora' changes its choice from step to step, and one file cannot: take"),
    ({"name": ""}, "name: the file needs a name"),
    ({"name": None}, "name: the file needs a name"),
    ({"name": " .safetensors "}, "name: the file needs a name"),
    ({"style": "a<b>"}, "style: there is no LoRA named 'a&lt;b&gt;' among the"),
    ({"name": "../fused"}, "name: '../fused' has '/' in it: a plain name is needed, for a file in the LoRA folder"),
    ({"name": "a\\b"}, "has '\\\\' in it: a plain name is needed"),
    ({"name": "a:b"}, "name: 'a:b' has ':' in it"),
    ({"name": ".fused"}, "name: '.fused' begins with a dot"),
    ({"name": "f" * 300}, "is too long: a plain name is needed"),
    ({"name": "字" * 100}, "is too long: a plain name is needed"),
    ({"name": "a=b"}, "name: 'a=b' has '=' in it"),
    ({"name": "\ud800"}, "in it: a plain name is needed"),
    ({"name": "aux"}, "name: 'aux' is a device's name in Windows"),
    ({"name": "subject_full"}, "name: another LoRA is listed as 'subject_full' already, and one would hide the other"),
    ({"method": "klora", "segments": 2, "progress": "noise"}, "progress: must be 'steps' for a file for each part"),
    ({"content": "None"}, "content: no LoRA is chosen"),
    ({"style": "nobody"}, "style: there is no LoRA named 'nobody' among the"),
    ({"style": "subject"}, "style: must be another LoRA than content, both are 'subject'"),
    ({"alpha": "many"}, "alpha: must be a number"),
    ({"segments": 99}, "segments: must be a whole number from 1 to 32, not 99"),
    ({"steps": None}, "steps: must be a whole number from 1 to 1000, not None"),
    ({"method": "blora"}, "has no layer in up_blocks.0.attentions.0, in which blora puts the content: it is for SDXL"),
])  # fmt: skip
def test_what_cannot_be_saved_is_one_sentence(host: FakeHost, folder: Path, given: dict[str, Any], told: str) -> None:
    message = press(host, **given)
    assert message.startswith("Nothing was saved: ") and told in message and message.endswith(".") and "\n" not in message
    assert list(folder.iterdir()) == []


def test_a_file_is_replaced_only_if_told(host: FakeHost, folder: Path) -> None:
    press(host)
    before = (folder / "fused.safetensors").read_bytes()
    assert "'fused.safetensors' exists already" in press(host, content_weight=0.5)
    assert (folder / "fused.safetensors").read_bytes() == before
    assert press(host, content_weight=0.5, overwrite=True).startswith("Saved")
    assert (folder / "fused.safetensors").read_bytes() != before


def test_saving_in_the_middle_of_a_job_leaves_its_image(host: FakeHost, folder: Path) -> None:
    alone = process_images(job(host)).images[0]
    told: list[str] = []
    host.on_call.append(lambda denoiser: told.append(press(host)) if not told else None)
    assert torch.equal(process_images(job(host)).images[0], alone)
    assert told[0].startswith("Saved")


def test_the_folder_is_the_webuis(host: FakeHost) -> None:
    host.modules["modules.shared"].cmd_opts = type("Options", (), {"lora_dir": "/models/Lora"})()
    assert detect().get_lora_folder() == "/models/Lora"

