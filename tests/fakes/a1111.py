"""The part of A1111's interface that K-LoRA uses, put into sys.modules and taken out again."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import networks as fake_networks
from .samplers import Denoiser, Sampler
from .unet import TextEncoder, UNet

SCRIPT = Path(__file__).parents[2] / "scripts" / "klora.py"
ScriptData = namedtuple("ScriptData", "script_class path basedir module")
Checkpoint = namedtuple("Checkpoint", "name_for_extra seed")
BASE, REFINER = Checkpoint("tiny", 0), Checkpoint("tiny-refiner", 9)


class InterruptedException(BaseException):
    """How the host ends a sampling pass."""


class ExtraNetworkParams:
    """items as between the colons of a tag; name=value apart from the rest."""

    def __init__(self, items: list[str]):
        self.items = items
        self.positional = [i for i in items if len(i.split("=", 2)) != 2]
        self.named = dict(i.split("=") for i in items if len(i.split("=", 2)) == 2)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtraNetworkParams) and self.items == other.items

    def __repr__(self) -> str:
        return ":".join(self.items)


class Script:
    infotext_fields: Any = None
    paste_field_names: Any = None
    is_img2img = False

    def elem_id(self, item: str) -> str:
        return f"script_txt2img_{re.sub(r'[^a-z_0-9]', '', self.title().lower())}_{item}"  # type: ignore[attr-defined]


class FakeA1111:
    """The modules, and what a test may look at: every denoiser call, every exception the host swallowed."""

    def __init__(self, lora_dir: Path):
        self.swallowed: list[BaseException] = []
        self.on_call: list[Callable[[Denoiser], None]] = []  # after every UNet call of a sampler
        self.samplers: list[Sampler] = []
        self.text_calls = 0  # how often the text encoder ran
        self.cond_cache: list[Any] = [None, None]
        self.script: Any = None
        self.sd_model = self.load(BASE)
        self.modules = self.make_modules(lora_dir)
        fake_networks.name_layers(self.sd_model)

    # --- the model ---

    @property
    def unet(self) -> UNet:
        return self.sd_model.model.diffusion_model

    def load(self, checkpoint: Checkpoint) -> Any:
        model = torch.nn.Module()
        model.diffusion_model = UNet(seed=checkpoint.seed)
        return types.SimpleNamespace(
            model=model, cond_stage_model=TextEncoder(seed=checkpoint.seed), sd_checkpoint_info=checkpoint
        )

    def reload_model_weights(self, sd_model: Any = None, info: Checkpoint | None = None) -> Any:
        """Loads ``info`` (the base checkpoint, when None) into the very modules of the loaded model."""
        info = info or BASE
        if info != self.sd_model.sd_checkpoint_info:
            networks = self.modules["networks"]
            networks.loaded_networks.clear()
            fresh = self.load(info)
            for ours, theirs in (
                (self.sd_model.model, fresh.model),
                (self.sd_model.cond_stage_model, fresh.cond_stage_model),
            ):
                ours.load_state_dict(theirs.state_dict())
                for layer in ours.modules():
                    networks.network_reset_cached_weight(layer)
            self.sd_model.sd_checkpoint_info = info
        return self.sd_model

    def apply_refiner(self, denoiser: Denoiser) -> None:
        p = denoiser.p
        info = p.refiner_checkpoint_info
        if (
            info is not None
            and denoiser.step / denoiser.total_steps >= p.refiner_switch_at
            and self.sd_model.sd_checkpoint_info != info
        ):
            self.sd_models.reload_model_weights(info=info)
            p.setup_conds()

    def called(self, denoiser: Denoiser) -> None:
        for look in self.on_call:
            look(denoiser)

    # --- the modules ---

    def __getattr__(self, name: str) -> types.ModuleType:
        modules = self.__dict__.get("modules", {})
        if name in modules or f"modules.{name}" in modules:
            return modules[name] if name in modules else modules[f"modules.{name}"]
        raise AttributeError(name)

    def make_modules(self, lora_dir: Path) -> dict[str, types.ModuleType]:
        opts = types.SimpleNamespace(lora_functional=False, lora_add_hashes_to_infotext=True, sd_lora="None")
        made = {
            "shared": {"sd_model": self.sd_model, "opts": opts, "state": types.SimpleNamespace(interrupted=False)},
            "devices": {"device": torch.device("cpu"), "cpu": torch.device("cpu")},
            "sd_unet": {"current_unet": None},
            "sd_models": {"reload_model_weights": self.reload_model_weights},
            "sd_samplers_common": {"InterruptedException": InterruptedException},
            "extra_networks": {"ExtraNetworkParams": ExtraNetworkParams, "parse_prompt": parse_prompt},
            "scripts": {"Script": Script, "AlwaysVisible": object(), "scripts_data": []},
            "script_callbacks": self.callbacks(),
            "ui_components": {},
            "ui_common": {},
        }
        package = types.ModuleType("modules")
        package.__path__ = []  # type: ignore[attr-defined]
        modules = {"modules": package}
        for name, contents in made.items():
            module = modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
            module.__dict__.update(contents)
            setattr(package, name, module)
        modules["networks"] = fake_networks.make(modules["modules.shared"], lora_dir)
        modules["modules.ui_components"].__getattr__ = widgets  # type: ignore[method-assign]
        modules["modules.ui_common"].__getattr__ = widgets  # type: ignore[method-assign]
        return modules

    def callbacks(self) -> dict[str, Any]:
        """Registration by kind, and the call whose exceptions the host reports and forgets."""
        registered: dict[str, list[Callable[..., Any]]] = {"cfg_denoiser": [], "before_ui": [], "script_unloaded": []}

        def cfg_denoiser_callback(params: Any) -> None:
            for callback in registered["cfg_denoiser"]:
                self.swallow(callback, params)

        ons = {f"on_{kind}": found.append for kind, found in registered.items()}
        return {"registered": registered, "cfg_denoiser_callback": cfg_denoiser_callback, **ons}

    def swallow(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as e:  # noqa: BLE001  as the host does
            self.swallowed.append(e)

    def hook(self, name: str, p: Any, *args: Any, **kwargs: Any) -> None:
        """One hook of the always-on script, with its arguments."""
        if self.script is not None and hasattr(self.script, name):
            own = () if name == "after_extra_networks_activate" else p.script_args
            self.swallow(getattr(self.script, name), p, *args, *own, **kwargs)

    def create_sampler(self, name: str) -> Sampler:
        self.samplers.append(Sampler(name, self))
        return self.samplers[-1]

    # --- the extension ---

    def load_script(self) -> Any:
        """Runs scripts/klora.py as the host does at start and at every reload of the UI."""
        spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.script = module.KLoraScript()
        self.app = module.APP
        return module


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    """The prompt without its tags, and the tags by kind."""
    found: dict[str, list[ExtraNetworkParams]] = {}
    for kind, inside in re.findall(r"<(\w+):([^>]+)>", prompt):
        found.setdefault(kind, []).append(ExtraNetworkParams(inside.split(":")))
    return re.sub(r"<(\w+):([^>]+)>", "", prompt), found


def widgets(name: str) -> Any:
    """gradio is asked for only by tests that build a panel."""
    from . import widgets as made

    return getattr(made, name)


@contextmanager
def installed(lora_dir: Path) -> Iterator[FakeA1111]:
    """The host in sys.modules and its layers patched; both undone at the end."""
    host = FakeA1111(lora_dir)
    before = {name: sys.modules.get(name) for name in host.modules}
    sys.modules.update(host.modules)
    host.networks.patch()
    try:
        with torch.no_grad():
            yield host
    finally:
        host.networks.undo()
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
