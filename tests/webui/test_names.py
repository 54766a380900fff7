"""Theorem: a listed LoRA is found by its name, whatever that is, or is refused by what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi import HTTPException
from safetensors.torch import load_file, save_file

from klora_lib.errors import SettingsError
from klora_lib.hosts import detect

from ..fakes.a1111 import FakeA1111
from ..fakes.forge import FakeForge
from ..fakes.host import FakeHost, installed
from ..fakes.loras import write_loras
from ..fakes.processing import process_images
from .jobs import job

ODD = [" subject", "subject ", "None.v2", "a, b", "a: b", '"quoted"', "512x512", "x<y", "Ünï", "a=b", "50%25", "(x:1.1)"]


@pytest.fixture(params=[FakeA1111, FakeForge], ids=["a1111", "forge"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeHost]:
    """With a folder of its own, to which a test adds files."""
    write_loras(tmp_path)
    with installed(request.param, tmp_path) as made:
        made.load_script()
        made.folder = tmp_path
        yield made


def add(host: FakeHost, name: str, like: str = "style", **metadata: str) -> Path:
    """A new file with the tensors of another one, listed."""
    path = host.folder / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(load_file(host.folder / f"{like}.safetensors"), path, metadata)
    host.networks.list_available_networks()
    return path


def refusal(host: FakeHost, **settings: str) -> str:
    with pytest.raises(HTTPException) as refused:
        process_images(job(host, settings))
    assert refused.value.status_code == 422 and host.samplers == []
    return str(refused.value.detail)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_a_name(host: FakeHost, name: str) -> None:
    add(host, name)
    image = process_images(job(host, {"style": name})).images[0]
    assert torch.equal(image, process_images(job(host)).images[0])


def test_blanks_at_the_ends_may_be_left_out_where_one_name_is_meant(host: FakeHost) -> None:
    path = add(host, " ink ")
    for given in (" ink ", "ink", "ink  "):
        assert detect().get_lora(given).path == str(path)
    assert detect().get_lora("subject ").name == "subject"
    own = add(host, "ink")
    assert detect().get_lora("ink").path == str(own) and detect().get_lora(" ink ").path == str(path)
    with pytest.raises(SettingsError, match="there is no LoRA named '  ink' among the 8 listed; there is ' ink '"):
        detect().get_lora("  ink")


def test_a_name_in_other_letters_is_told(host: FakeHost) -> None:
    said = refusal(host, style="Style")
    assert said == "K-LoRA: style: there is no LoRA named 'Style' among the 6 listed; there is 'style'"


def test_a_lora_called_none_is_refused_as_that(host: FakeHost) -> None:
    path = add(host, "None")
    assert refusal(host, style="None") == (
        f"K-LoRA: style: no LoRA is chosen ('None' stands for none, so that the file {str(path)!r} needs another name)"
    )


def test_an_alias_of_one_file_chooses_it(host: FakeHost) -> None:
    add(host, "file", ss_output_name="alias")
    image = process_images(job(host, {"style": "alias"})).images[0]
    assert torch.equal(image, process_images(job(host)).images[0])


def test_an_alias_of_two_files_is_ambiguous(host: FakeHost) -> None:
    for name in ("one", "two"):
        add(host, name, ss_output_name="alias")
    said = "'alias' is ambiguous, the alias of several LoRAs: give the name of one, 'one'; 'two'"
    assert refusal(host, style="alias") == f"K-LoRA: style: {said}"
    assert detect().get_lora("two").name == "two"


def test_a_name_of_two_different_files_is_refused_with_both(host: FakeHost) -> None:
    add(host, "a/twin")
    add(host, "b/twin", like="subject")
    said = "'twin' is the name of 2 different files ('b/twin.safetensors'; 'a/twin.safetensors'): rename one"
    assert refusal(host, style="twin") == f"K-LoRA: style: {said}"


def test_two_copies_of_one_file_are_one_lora(host: FakeHost) -> None:
    path = add(host, "a/twin")
    (host.folder / "b").mkdir()
    shutil.copy(path, host.folder / "b")
    host.networks.list_available_networks()
    assert len(process_images(job(host, {"style": "twin"})).images) == 1


def test_files_are_compared_once_until_the_host_looks_again(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    add(host, "a/twin")
    assert detect().get_lora("twin").name == "twin"
    (host.folder / "b").mkdir()
    shutil.copy(host.folder / "subject.safetensors", host.folder / "b" / "twin.safetensors")
    assert detect().get_lora("twin").name == "twin"
    host.networks.list_available_networks()
    with pytest.raises(SettingsError, match="2 different files"):
        detect().get_lora("twin")
