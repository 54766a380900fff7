"""The WebUIs these tests run on: how each is started, and the tiny models made for it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import files
from .host import Host
from .jobs import Model, Pair
from .makers import control

PREPARED = ("--skip-prepare-environment", "--skip-python-version-check", "--skip-torch-cuda-test", "--skip-install")
FLUX_JOB = {
    "sampler_name": "Euler", "cfg_scale": 1, "distilled_cfg_scale": 3.5, "scheduler": "Simple", "negative_prompt": "",
}  # fmt: skip
INFERENCE_MB = 1024
FLUX_PARTS = ("VAE/flux_ae.safetensors", "text_encoder/flux_clip_l.safetensors", "text_encoder/flux_t5_tiny.safetensors")


class A1111(Host):
    """AUTOMATIC1111.  The models' folder has ckpt/ and lora/."""

    prefix = "KLORA_A1111"
    checkpoints, loras = "ckpt", "lora"
    sd15 = Model("sd15", "tiny-sd15.safetensors", Pair("subject", "style"), Pair("subject_full", "style_half_alpha"))
    sdxl = Model(
        "sdxl", "tiny-sdxl.safetensors", Pair("subject_xl", "style_xl"), Pair("subject_full_xl", "style_half_alpha_xl")
    )
    sd15_other = "tiny-sd15.ckpt"  # shares the config file: the WebUI loads it into the same modules, in place

    def flags(self, checkpoint: str) -> list[str]:
        fixed = [*PREPARED, "--use-cpu", "all", "--no-half", "--precision", "full", "--api", "--no-download-sd-model"]
        folders = ["--ckpt-dir", str(self.ckpt), "--ckpt", str(self.ckpt / checkpoint), "--lora-dir", str(self.lora)]
        return [*fixed, "--do-not-download-clip", *folders]

    def write_other(self, path: Path, weights: files.Tensors) -> None:
        """The WebUI's own unpickler knows the old layout only."""
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=False)


class Forge(Host):
    """Forge.  The models' folder has Stable-diffusion/, Lora/, VAE/ and text_encoder/."""

    prefix = "KLORA_FORGE"
    checkpoints, loras = "Stable-diffusion", "Lora"
    sd15 = Model("sd15", "tiny-sd15.safetensors", Pair("subject", "style_attention"), Pair("style", "twin"))
    sdxl = Model("sdxl", "tiny-sdxl.safetensors", Pair("xl_subject", "xl_style_attention"), Pair("xl_style", "xl_twin"))
    sd15_other = "tiny-sd15-other.safetensors"
    flux = Model("flux", "tiny-flux.safetensors", Pair("flux_subject", "flux_style"), Pair("flux_style", "flux_twin"))
    further = (flux,)
    hires = {"hr_additional_modules": ["Use same choices"], "hr_cfg": 5}
    config = {"live_previews_enable": False, "sd_model_checkpoint": sd15.checkpoint}
    fixed_flags: tuple[str, ...] = ("--always-cpu", *PREPARED, "--api", "--no-download-sd-model")
    folder_flags = {"ckpt-dir": "", "lora-dir": "", "vae-dir": "VAE", "text-encoder-dir": "text_encoder"}
    sizes = {"a-sizes": Path(__file__).parent / "makers" / "extension"}

    def flags(self, checkpoint: str) -> list[str]:
        own = {"ckpt": self.ckpt, "lora": self.lora}
        folders = {flag: own.get(flag.split("-")[0], self.models_folder / name) for flag, name in self.folder_flags.items()}
        return [*self.fixed_flags, *(x for flag, folder in folders.items() for x in (f"--{flag}", str(folder)))]

    def use(self, checkpoint: str) -> None:
        self.store(checkpoint, "Automatic")

    def store(self, checkpoint: str, stored: str) -> None:
        """A checkpoint and its storage ("Diffusion in Low Bits"), looked at only when something else changes too."""
        if (self.checkpoint, self.stored) == (checkpoint, stored):
            return
        parts = [str(self.models_folder / part) for part in FLUX_PARTS] if "flux" in checkpoint else []
        options: dict = {"sd_model_checkpoint": checkpoint, "forge_additional_modules": parts}
        if self.stored != stored:
            self.options(**options, forge_unet_storage_dtype=stored, forge_inference_memory=INFERENCE_MB + 1)
            options["forge_inference_memory"] = INFERENCE_MB
        self.options(**options)
        self.checkpoint, self.stored = checkpoint, stored

    def add_loras(self) -> None:
        """Two files more are cut from the maker's largest.  And a ControlNet, which the host lists at its start alone."""
        folder = self.data / "models" / "ControlNet"
        folder.mkdir(parents=True)
        weights = control.make_control_model(files.read(self.ckpt / self.sd15.checkpoint))
        files.write(folder / f"{control.NAME}.safetensors", weights)
        for model in (*self.models.values(), *self.further):
            tensors = files.read(self.lora / f"{model.full.content}.safetensors")
            files.write(self.lora / f"{model.full.style}.safetensors", files.twin(tensors))
            if not (self.lora / f"{model.attention.style}.safetensors").exists():
                files.write(self.lora / f"{model.attention.style}.safetensors", files.attention_only(tensors))

    def write_other(self, path: Path, weights: files.Tensors) -> None:
        save_file(weights, path)


class ReForge(Forge):
    """reForge.  The models' folder has Stable-diffusion/, Lora/ and VAE/."""

    prefix = "KLORA_REFORGE"
    further = ()
    hires = {"hr_cfg": 5}
    folder_flags = {"ckpt-dir": "", "lora-dir": "", "vae-dir": "VAE"}
    sizes: dict[str, Path] = {}

    def use(self, checkpoint: str) -> None:
        Host.use(self, checkpoint)


class Classic(ReForge):
    """Forge Classic, started as reForge is."""

    prefix = "KLORA_CLASSIC"


class Neo(Forge):
    """Forge Neo: own words for the folders, a question unless its version is known, no latent upscaler."""

    prefix = "KLORA_NEO"
    further = ()
    hires = Forge.hires | {"hr_upscaler": "None"}
    config = Forge.config | {"VERSION_UID": "PY313"}
    fixed_flags = ("--cpu", *PREPARED, "--skip-version-check", "--api")
    folder_flags = {"ckpt-dirs": "", "lora-dir": "", "vae-dirs": "VAE", "text-encoder-dirs": "text_encoder"}
    sizes: dict[str, Path] = {}


KINDS: dict[str, type[Host]] = {"a1111": A1111, "forge": Forge, "reforge": ReForge, "classic": Classic, "neo": Neo}


def variables(kind: type[Host]) -> dict[str, str]:
    """The environment variables that say where such a WebUI is."""
    return {
        f"{kind.prefix}_DIR": "the folder of an installed WebUI",
        f"{kind.prefix}_PYTHON": "the Python that runs it",
        f"{kind.prefix}_MODELS": f"a folder with {kind.checkpoints}/tiny-sd15, /tiny-sdxl and {kind.loras}/ for them",
    }


def missing(kind: type[Host]) -> list[str]:
    return [f"{name} ({what})" for name, what in variables(kind).items() if not os.environ.get(name)]


def installed(kind: type[Host], folder: Path, extensions: dict[str, Path]) -> Host:
    """A host with folders of its own, in which are links to the models."""
    webui, python, models = (Path(os.environ[name]).absolute() for name in variables(kind))
    host = kind(folder, webui, python, models, extensions)
    for own, source in ((host.ckpt, models / kind.checkpoints), (host.lora, models / kind.loras)):
        own.mkdir()
        for path in source.iterdir():
            (own / path.name).symlink_to(path)
    return host


def install(kind: type[Host], folder: Path, extensions: dict[str, Path]) -> Host:
    """The same with the maker's tiny models, and with what the tests derive from these."""
    host = installed(kind, folder, extensions)
    weights = load_file(host.ckpt / host.sd15.checkpoint)
    host.write_other(host.ckpt / host.sd15_other, {k: v * 3 if ".attn" in k else v for k, v in weights.items()})
    host.add_loras()
    for model in (*host.models.values(), *host.further):
        for seed, role in enumerate(("content", "style")):
            tensors = files.read(host.lora / f"{getattr(model.full, role)}.safetensors")
            files.write(host.lora / f"{getattr(model.uneven, role)}.safetensors", files.uneven(tensors, seed))
    return host
