"""What a test has happen within a job, and how the job then ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi import HTTPException

from ..fakes.host import FakeHost
from ..fakes.processing import Processing, process_images
from ..fakes.samplers import Denoiser


def ended(p: Processing) -> str:
    """The sentence by which a job ended that had begun."""
    with pytest.raises(HTTPException) as refusal:
        process_images(p)
    assert refusal.value.status_code == 422
    return str(refusal.value.detail)


def at(host: FakeHost, step: int, act: Callable[[], Any]) -> None:
    """Do something once, after the UNet's call number ``step`` (from 0) of the outermost sampler."""
    done: list[Denoiser] = []

    def look(denoiser: Denoiser) -> None:
        if denoiser.step == step and not done:
            done.append(denoiser)
            act()

    host.on_call.append(look)


def in_another_thread(act: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            act()

    def start() -> None:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    return start
