"""The live selection map in a browser: see map.js for what is done with it."""

from __future__ import annotations

import json
from statistics import median, quantiles
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ...bench.plan import shapes
from .. import files
from ..host import Host
from .conftest import Browse, check_console

pytestmark = pytest.mark.hosts("a1111", "forge")


def write_pair(host: Host) -> list[str]:
    """Copies of a pair, named as a user's files are, with trigger words."""
    pair, names = host.sd15.full, ("corgi", "watercolour")
    for name, of, words in zip(names, (pair.content, pair.style), ("sks corgi", "in watercolour")):
        tags = json.dumps({"10_train": {words: 10}})
        save_file(files.read(host.lora / f"{of}.safetensors"), host.lora / f"{name}.safetensors", {"ss_tag_frequency": tags})
    return list(names)


def write_full_size(host: Host) -> tuple[str, str]:
    """Two LoRAs for a full-size SDXL, of ranks 32 and 64.  Returns their names."""
    names = []
    for seed, (name, rank) in enumerate((("full size subject", 32), ("full size style", 64))):
        g = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, (rows, columns) in shapes().items():
            key = "lora_unet_" + layer.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = (torch.randn(rank, columns, generator=g) / columns**0.5).half()
            tensors[f"{key}.lora_up.weight"] = (torch.randn(rows, rank, generator=g) * 0.01).half()
            tensors[f"{key}.alpha"] = torch.tensor(float(rank)).half()
        names.append(files.write(host.lora / f"{name}.safetensors", tensors))
    return names[0], names[1]


@pytest.fixture(scope="session")
def seen(page_host: Host, browse: Browse) -> dict[str, Any]:
    pair, full = write_pair(page_host), write_full_size(page_host)
    page_host.refresh_loras()
    return browse("map.js", *pair, *full)


def test_every_step_was_done(seen: dict[str, Any]) -> None:
    assert seen["failed"] == []


def test_the_console_is_clean(seen: dict[str, Any]) -> None:
    check_console(seen)


def test_it_shows_the_plan_by_blocks_in_the_models_order(seen: dict[str, Any]) -> None:
    first = seen["first"]
    blocks = [title.split()[0] for title, _, _ in first["layers"]["groups"]]
    assert blocks == sorted(blocks, key=["down", "middle", "up"].index)
    assert first["steps"] == 20 and len(first["rows"]) == len(first["layers"]["names"]) and len(first["share"]) == 20
    assert "%" in seen["sentence"]


def test_balance_and_alpha_change_it(seen: dict[str, Any]) -> None:
    assert sum(seen["balanced"]["share"]) > sum(seen["first"]["share"]), "more balance, more style"
    assert sum(seen["alpha"]["share"]) != sum(seen["first"]["share"])


def test_pointer_and_keys_tell_of_a_layer(seen: dict[str, Any]) -> None:
    for told in (seen["pointed"], seen["keyed"]):
        assert "ranks" in told and "acts" in told and ("switch" in told or "from step" in told)
    assert "step 2:" in seen["keyed"]


def test_a_refusal_is_one_sentence(seen: dict[str, Any]) -> None:
    assert seen["refused"].startswith("style: ") and "content" in seen["refused"]


def test_cancelled_and_closed_it_asks_nothing(seen: dict[str, Any]) -> None:
    assert seen["cancelled"] == "Cancelled: change a value to see the map."
    assert seen["askedAfterCancelling"] == 0 and seen["askedWhenClosed"] == 0
    assert "klora-map" in seen["focusAfterCancelling"].split(), "the button that had the focus is hidden"


def test_after_a_failure_it_asks_again_by_itself(seen: dict[str, Any]) -> None:
    milliseconds, requests = seen["again"]
    assert seen["failure"] == "The WebUI does not answer."
    assert requests == 2 and milliseconds > 3000


def test_tab_reaches_every_control(seen: dict[str, Any]) -> None:
    pair = ["content", "content_refresh", "content_facts", "style", "style_refresh", "style_facts"]
    others = ["content_weight", "style_weight", "swap", "method", "balance", "preset", "map", "advanced", "presets", "save"]
    assert [name for name in dict.fromkeys(seen["reached"]) if name in (*pair, *others)] == [*pair, *others]


def test_how_long_it_took(seen: dict[str, Any], record_property: Any) -> None:
    """No time is asserted here: what was measured goes into the report of the test's run."""
    times = seen["times"]
    middle, most = median(times), quantiles(times, n=20)[-1]
    told = f"{len(times)} changes of a full-size SDXL pair: median {middle:.0f} ms, 95 % within {most:.0f} ms"
    record_property("map", told)
    print(told)
    assert len(times) == 30 and all(time > 0 for time in times)
