"""The fake A1111 without our script, the adapter alone; a fake Neo with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ..engine.cases import rand
from ..fakes.a1111 import FakeA1111
from ..fakes.host import installed
from ..fakes.loras import all_layers, lora_tensors, write_loras
from ..fakes.neo import FakeNeo
from ..fakes.unet import UNet


@pytest.fixture
def host(loras: Path) -> Iterator[FakeA1111]:
    with installed(FakeA1111, loras) as host:
        yield host


@pytest.fixture(scope="session")
def more_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual files, ``other`` on every layer and the text encoder, and a DoRA for content."""
    folder = tmp_path_factory.mktemp("neo")
    write_loras(folder)
    net = UNet()
    save_file(lora_tensors(net, all_layers(net), seed=7, text=True), folder / "other.safetensors")
    dora = load_file(folder / "subject.safetensors")
    for key in [key for key in dora if key.endswith(".lora_up.weight")]:
        dora[key.replace("lora_up.weight", "dora_scale")] = rand(dora[key].shape[0], 1, seed=5).abs() + 1
    save_file(dora, folder / "dora.safetensors")
    return folder


@pytest.fixture
def forge_neo(more_loras: Path) -> Iterator[FakeNeo]:
    with installed(FakeNeo, more_loras) as host:
        host.load_script()
        yield host
