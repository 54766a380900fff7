"""The README's picture of the panel.  ``make pictures`` writes it: KLORA_PICTURES is the folder for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ..host import Host
from .conftest import Browse

pytestmark = pytest.mark.hosts("a1111")
WORDS = {"sks_dog": ["a sks dog"], "watercolour": ["watercolour painting", "soft wash"]}


def test_the_panel_with_a_pair(page_host: Host, browse: Browse, tmp_path: Path) -> None:
    pair = page_host.sd15.full
    for (name, words), source in zip(WORDS.items(), (pair.content, pair.style)):
        path = page_host.lora / f"{name}.safetensors"
        path.write_bytes((page_host.lora / f"{source}.safetensors").read_bytes())
        path.with_suffix(".json").write_text(json.dumps({"activation text": ", ".join(words)}))
    page_host.refresh_loras()
    seen = browse("picture.js", *WORDS)
    assert seen["failed"] == []
    folder = Path(os.environ.get("KLORA_PICTURES") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(seen["picture"], folder / "panel.png")
    with Image.open(folder / "panel.png") as image:
        assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 100
