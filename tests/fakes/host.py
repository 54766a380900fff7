"""What K-LoRA uses of the interface that A1111 and Forge share, put into sys.modules and taken out again."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .samplers import Denoiser, Sampler
from .unet import UNet

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
    """The base class of scripts: every hook is there, and does nothing."""

    infotext_fields: Any = None
    paste_field_names: Any = None
    is_img2img = False

    def process(self, p: Any, *args: Any) -> None: ...

    def after_extra_networks_activate(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None: ...

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None: ...

    def elem_id(self, item: str) -> str:
        return f"script_txt2img_{re.sub(r'[^a-z_0-9]', '', self.title().lower())}_{item}"  # type: ignore[attr-defined]


class FakeHost(ABC):
    """The modules, and what a test may look at: every denoiser call, every exception the host swallowed."""

    name: str
    reload: str  # the function of modules.sd_models that swaps checkpoints
    part: str  # what of the LoRA loader has gone when a test makes a host that K-LoRA does not know
    accordion_is_a_function: bool  # on others InputAccordion is a class
    sigma_is_a_timestep: bool  # what callbacks get of DDIM and UniPC

    def __init__(self, lora_dir: Path):
        self.swallowed: list[BaseException] = []
        self.on_call: list[Callable[[Denoiser], None]] = []  # after every UNet call of a sampler
        self.on_process: list[Callable[[Any], None]] = []  # after our hook: another script writes the prompts
        self.on_batch: list[Callable[[Any], None]] = []  # before the prompts of a batch are parsed
        self.samplers: list[Sampler] = []
        self.text_calls = 0  # how often the text encoder ran
        self.cond_cache: list[Any] = [None, None]
        self.script: Any = None
        self.lora_dir = lora_dir
        self.modules = self.make_modules()
        self.shared.cmd_opts = types.SimpleNamespace(lora_dir=str(lora_dir))
        self.modules |= self.own_modules(lora_dir)

    # --- where the hosts differ ---

    @property
    @abstractmethod
    def unet(self) -> UNet:
        """The denoiser of the loaded model."""

    @abstractmethod
    def load(self, checkpoint: Checkpoint) -> Any:
        """A model read afresh."""

    @abstractmethod
    def own_modules(self, lora_dir: Path) -> dict[str, types.ModuleType]:
        """``networks``, the function ``reload``, and what else only this host has."""

    @abstractmethod
    def begin_batch(self) -> None:
        """The base checkpoint, as it is before any LoRA."""

    @abstractmethod
    def swap_model(self, p: Any, info: Checkpoint) -> None:
        """The refiner's part, in the middle of a pass."""

    @abstractmethod
    def encode(self, prompt: str) -> Tensor:
        """The text encoder's answer, LoRAs merged."""

    @abstractmethod
    def networks_active(self) -> None:
        """A batch's networks have been activated."""

    @abstractmethod
    def sampling_prepare(self) -> None:
        """Between the hooks and the launch of a sampler."""

    @abstractmethod
    def generating(self) -> AbstractContextManager[Any]:
        """Around everything between the hooks ``process`` and ``postprocess``."""

    @abstractmethod
    def undo(self) -> None:
        """What was done to classes of torch."""

    def before_sampling(self, p: Any, x: Tensor, noise: Tensor) -> None:
        self.hook("process_before_every_sampling", p, x=x, noise=noise)

    # --- the model ---

    @property
    def sd_model(self) -> Any:
        return self.modules["modules.shared"].sd_model

    def apply_refiner(self, denoiser: Denoiser) -> None:
        p = denoiser.p
        info = p.refiner_checkpoint_info
        due = info is not None and denoiser.step / denoiser.total_steps >= p.refiner_switch_at
        if due and self.sd_model.sd_checkpoint_info != info:
            self.swap_model(p, info)

    def called(self, denoiser: Denoiser) -> None:
        for look in self.on_call:
            look(denoiser)

    # --- the modules ---

    def __getattr__(self, name: str) -> types.ModuleType:
        modules = self.__dict__.get("modules", {})
        if name in modules or f"modules.{name}" in modules:
            return modules[name] if name in modules else modules[f"modules.{name}"]
        raise AttributeError(name)

    def make_modules(self) -> dict[str, types.ModuleType]:
        from .processing import process_images_inner

        opts = types.SimpleNamespace(lora_functional=False, lora_add_hashes_to_infotext=True, sd_lora="None")
        state = types.SimpleNamespace(interrupted=False, skipped=False)
        cmd_opts = types.SimpleNamespace(freeze_settings=False)
        made = {
            "shared": {"sd_model": self.load(BASE), "opts": opts, "state": state, "cmd_opts": cmd_opts},
            "paths_internal": {"data_path": str(self.lora_dir)},
            "devices": {"device": torch.device("cpu"), "cpu": torch.device("cpu")},
            "sd_unet": {"current_unet": None},
            "sd_models": {"model_data": types.SimpleNamespace(sd_model=object())},
            "sd_samplers_common": {"InterruptedException": InterruptedException},
            "extra_networks": {"ExtraNetworkParams": ExtraNetworkParams, "parse_prompt": parse_prompt},
            "processing": {"process_images_inner": process_images_inner},
            "scripts": {"Script": Script, "AlwaysVisible": object(), "scripts_data": []},
            "script_callbacks": self.callbacks(),
            "ui_components": {"__getattr__": self.widget},
            "ui_common": {"__getattr__": self.widget},
        }
        modules = {"modules": package("modules")}
        for name, contents in made.items():
            modules[f"modules.{name}"] = package(f"modules.{name}", **contents)
            setattr(modules["modules"], name, modules[f"modules.{name}"])
        return modules

    def widget(self, name: str) -> Any:
        """gradio, whichever is there then, is asked for only by tests that build a panel."""
        if name not in ("InputAccordion", "create_refresh_button"):
            raise AttributeError(name)
        from . import widgets

        return widgets.make(sys.modules["gradio"], self.accordion_is_a_function)[name]

    def callbacks(self) -> dict[str, Any]:
        """Registration by kind, and the call whose exceptions the host reports and forgets."""
        kinds = ("cfg_denoiser", "before_ui", "ui_settings", "app_started", "script_unloaded")
        registered: dict[str, list[Callable[..., Any]]] = {kind: [] for kind in kinds}

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


def package(name: str, **contents: Any) -> types.ModuleType:
    """A module that ``importlib.util.find_spec`` finds as well."""
    module = types.ModuleType(name)
    module.__path__ = []  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__dict__.update(contents)
    return module


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    """The prompt without its tags, and the tags by kind."""
    found: dict[str, list[ExtraNetworkParams]] = {}
    for kind, inside in re.findall(r"<(\w+):([^>]+)>", prompt):
        found.setdefault(kind, []).append(ExtraNetworkParams(inside.split(":")))
    return re.sub(r"<(\w+):([^>]+)>", "", prompt), found


def parse_prompts(prompts: list[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]]]:
    """The tags are those of the first prompt."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1]


@contextmanager
def installed(kind: type[FakeHost], lora_dir: Path) -> Iterator[Any]:
    """A host of this kind in sys.modules, its layers patched where it patches any; all undone at the end."""
    host = kind(lora_dir)
    before = {name: sys.modules.get(name) for name in host.modules}
    sys.modules.update(host.modules)
    try:
        with torch.no_grad():
            yield host
    finally:
        host.undo()
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
