"""The section *K-LoRA* of the WebUI's settings page, and what its values do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..errors import KLoraError
from ..map.colours import DEFAULT, PALETTES
from ..rule.cache import FILES, Library
from ..settings import BY_NAME, ENGINES
from .presets import NO_PRESET, Store, fill

SECTION = ("klora", "K-LoRA")
PRESET, ENGINE, CACHE, COLOURS = "klora_preset", "klora_engine", "klora_cache_gb", "klora_map_colours"
KEPT = "klora_keep_scores"
GIGABYTE = 1 << 30
LABELS = {
    PRESET: "Preset that the panel begins with",
    ENGINE: "Engine that the panel begins with",
    CACHE: "Memory for LoRA files that were read, in GB",
    COLOURS: "Colours of the selection map",
    KEPT: "Keep the scores of pairs on disk",
}
HINTS = {
    PRESET: "None: the defaults, or what is saved under Defaults; needs Reload UI",
    ENGINE: "needs Reload UI",
    CACHE: "the two last used are always kept",
    COLOURS: "blue and orange can be told apart by the colour-blind too",
    KEPT: "a few kB each, so that a pair is not compared again after a restart",
}


def add_options(library: Library, store: Store, folder: str) -> None:
    """``on_ui_settings``: add the section to the settings page.  ``folder``: where scores are kept, if they are."""
    import gradio as gr

    from modules import shared

    def add(key: str, default: Any, component: Any, args: Any, **more: Any) -> None:
        option = shared.OptionInfo(default, LABELS[key], component, args, section=SECTION, **more)
        shared.opts.add_option(key, option.info(HINTS[key]))

    def list_presets() -> dict[str, Any]:
        return {"choices": [NO_PRESET, *store.list_names()]}

    add(PRESET, NO_PRESET, gr.Dropdown, list_presets)
    add(ENGINE, BY_NAME["engine"].default, gr.Dropdown, {"choices": list(ENGINES)})
    cache = {"minimum": 0.5, "maximum": 16, "step": 0.5}
    add(CACHE, FILES / GIGABYTE, gr.Slider, cache, onchange=lambda: set_cache(library))
    add(COLOURS, DEFAULT, gr.Dropdown, {"choices": list(PALETTES)})
    add(KEPT, True, gr.Checkbox, None, onchange=lambda: set_kept(library, folder))
    set_cache(library)
    set_kept(library, folder)


def read_option(key: str, default: Any) -> Any:
    """The option's value; ``default`` where the WebUI does not know it (yet)."""
    from modules import shared

    return getattr(shared.opts, "data", {}).get(key, default)


def set_cache(library: Library) -> None:
    """Let ``library`` keep as many bytes of files as the option says."""
    value = read_option(CACHE, FILES / GIGABYTE)
    library.most = int(value * GIGABYTE) if isinstance(value, (int, float)) else FILES


def set_kept(library: Library, folder: str) -> None:
    """Let ``library`` keep scores in ``folder``, or nowhere, as the option says."""
    library.kept_in = folder if read_option(KEPT, True) else None


def find_start(store: Store) -> Mapping[str, Any]:
    """What the panel shows at first instead of the defaults, by field name.

    A preset that cannot be used changes nothing, and the WebUI's console tells it.
    """
    start: dict[str, Any] = {}
    name = read_option(PRESET, NO_PRESET)
    if name != NO_PRESET:
        try:
            start = fill(store.find(name))
        except KLoraError as e:
            print(f"K-LoRA: the panel begins without the preset {name!r} of the settings page: {e}", file=sys.stderr)
    engine = read_option(ENGINE, None)
    if engine in ENGINES and engine != BY_NAME["engine"].default:
        start["engine"] = engine
    return start
