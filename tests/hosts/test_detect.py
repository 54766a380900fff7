"""Every WebUI is claimed by its own family and by no other, told apart by what is there."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from klora_lib import hosts
from klora_lib.errors import HostError
from klora_lib.hosts import a1111, forge, ldm_patched, neo

LISTS = ("available_networks", "available_network_aliases", "forbidden_network_aliases", "list_available_networks")
COMMON = (*LISTS, "loaded_networks", "load_network", "load_networks", "load_lora_for_models", "load_lora_state_dict")
STUBS = ("network_apply_weights", "network_restore_weights_from_backup", "network_reset_cached_weight")
A1111 = (*LISTS, "loaded_networks", "load_network", "load_networks", *STUBS)
FORGE = ("clone", "add_patches", "refresh_loras")
# what is in networks.py and which packages stand in the WebUI's folder; ``originals`` is None where nothing is patched
LAYOUTS = {
    "a1111": (A1111, object(), [], a1111),
    "forge": (COMMON, None, ["backend/patcher", "modules_forge"], forge),
    "neo": (COMMON, None, ["backend/patcher", "modules_forge"], neo),
    "reforge": ((*COMMON, *STUBS), None, ["ldm_patched/modules", "modules_forge"], ldm_patched),
    "classic": (COMMON, None, ["ldm_patched/modules", "modules_forge"], ldm_patched),
    "unknown": (COMMON, None, ["modules_forge"], None),
}


def lay(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> object:
    """Put the WebUI's folder on the path and its LoRA loader among the loaded modules.  Returns its family."""
    functions, originals, packages, family = LAYOUTS[name]
    networks = types.ModuleType("networks")
    vars(networks).update(dict.fromkeys(functions), originals=originals)
    monkeypatch.setitem(sys.modules, "networks", networks)
    if "backend/patcher" in packages:
        base = types.ModuleType("backend.patcher.base")
        methods = FORGE if name == "forge" else FORGE[:2]
        base.ModelPatcher = type("ModelPatcher", (), dict.fromkeys(methods))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, base.__name__, base)
    else:
        monkeypatch.delitem(sys.modules, "backend.patcher.base", raising=False)
    for package in packages:
        (folder / package).mkdir(parents=True)
    if "ldm_patched/modules" in packages:
        (folder / "ldm_patched/modules/model_patcher.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    for module in ("backend", "ldm_patched", "ldm_patched.modules", "modules_forge"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType("before"))
        monkeypatch.delitem(sys.modules, module)  # with the line before: absent again afterwards, too
    return family


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_its_own_family_claims_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    family = lay(monkeypatch, tmp_path, name)
    assert [f.NAME for f in hosts.FAMILIES if not f.find_missing()] == ([family.NAME] if family else [])


def test_an_unknown_one_is_refused_with_what_it_lacks_of_its_next_of_kin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lay(monkeypatch, tmp_path, "unknown")
    told = r"has changed: compared with reForge / Forge Classic's, it lacks ldm_patched\.modules\.model_patcher$"
    with pytest.raises(HostError, match=told):
        hosts.detect()


def test_without_the_built_in_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    assert ldm_patched.find_missing() == ["built-in Lora extension"]


@pytest.mark.parametrize("name", ldm_patched.NEEDED)
def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    lay(monkeypatch, tmp_path, "classic")
    delattr(sys.modules["networks"], name)
    assert ldm_patched.find_missing() == [name]
