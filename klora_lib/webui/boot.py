"""What the script file registers in the WebUI: the app, its panel, its axes.  Only this file uses the WebUI's widgets."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType
from typing import Any

from ..errors import HostError
from ..hosts import detect
from . import options, panel, plot, xyz
from .app import App
from .parts import Services
from .presets import Store


def make_app() -> App:
    return App()


def register(app: App, callbacks: Any) -> None:
    """Give the WebUI what it is to call.  ``callbacks``: its module script_callbacks.

    At each registration it reads the whole call stack, and looks for the source of every frame among all modules that are
    loaded: 80 ms each while a script is being loaded.  A thread of its own has a stack of a few frames.
    """

    def act() -> None:
        callbacks.on_cfg_denoiser(app.advance)
        callbacks.on_before_ui(lambda: add_axes(app))
        callbacks.on_ui_settings(lambda: make_options(app))
        callbacks.on_app_started(app.serve)
        callbacks.on_script_unloaded(app.unload)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(act).result()


def make_panel(script: Any, app: App) -> list[Any]:
    """The panel's components; what it tells of files comes from what ``app`` has read.

    Also tells the script which of them are filled when an infotext is pasted.
    """
    from modules.ui_common import create_refresh_button
    from modules.ui_components import InputAccordion

    store = find_store()
    services = Services(
        list_loras, create_refresh_button, refresh_loras, app.describe_lora, app.check_pair, app.save, store
    )
    made = panel.build_panel(InputAccordion, script.elem_id, services, describe_trouble(), options.find_start(store))
    script.infotext_fields = made.infotext_fields
    script.paste_field_names = made.names
    return made.components


def make_options(app: App) -> None:
    """``on_ui_settings``"""
    options.add_options(app.library, find_store(), find_cache_folder())


def find_store() -> Store:
    """The user's presets, beside the WebUI's own settings; none where these are frozen."""
    from modules import paths_internal, shared

    frozen = getattr(shared.cmd_opts, "freeze_settings", False)
    return Store(None if frozen else paths_internal.data_path)


def find_cache_folder() -> str:
    """For scores: in the WebUI's own cache, which SD_WEBUI_CACHE_DIR moves; where it has none, in its data folder."""
    from modules import paths_internal

    host = getattr(sys.modules.get("modules.cache"), "cache_dir", None)
    return os.path.join(host or os.path.join(paths_internal.data_path, "cache"), "klora")


def describe_trouble() -> str:
    """Why no job can run in this WebUI, in one sentence; empty if jobs can run."""
    try:
        detect()
    except HostError as e:
        return f"K-LoRA cannot run here: {e}."
    return ""


def list_loras() -> list[str]:
    """The listed LoRAs; none if the WebUI is not supported, which the panel and every job say."""
    try:
        return detect().list_loras()
    except HostError:
        return []


def refresh_loras() -> None:
    """Look for new LoRA files.  Does nothing if the WebUI is not supported, which the panel already says."""
    with suppress(HostError):
        detect().refresh_loras()


def check_lora(name: str) -> None:
    """Raise SettingsError if no LoRA has this name or alias; a WebUI that is not supported is refused by every job."""
    with suppress(HostError):
        detect().get_lora(name)


def add_axes(app: App) -> None:
    """Add our axes to the XYZ plot, if the WebUI has one, and what becomes of cells that cannot be drawn."""
    grid = find_xyz_module()
    if grid is not None:
        xyz.add_axes(grid, list_loras, check_lora)
        plot.guard_plot(grid, app.library)


def find_xyz_module() -> ModuleType | None:
    """The module of the host's plot script; it is loaded by path, and named after its file.  None if there is none."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid") and hasattr(data.module, "AxisOption"):
            return data.module
    return sys.modules.get("scripts.xyz_grid")
