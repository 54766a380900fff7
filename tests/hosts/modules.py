"""Modules of a host, put where it has them, for the time of a test."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from ..fakes.host import Script


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def install_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every host must have to be detected."""
    install(monkeypatch, "modules.scripts", Script=Script)
    install(monkeypatch, "modules.script_callbacks", on_cfg_denoiser=None)
    install(monkeypatch, "modules.processing", process_images_inner=None)
