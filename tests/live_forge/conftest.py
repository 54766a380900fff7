"""A real Forge for these tests.  Needs an installed one and tiny models; skips, saying what is missing, where not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..live.host import Host

VARIABLES = {
    "KLORA_FORGE_DIR": "the folder of an installed Forge",
    "KLORA_FORGE_PYTHON": "the Python that runs it",
    "KLORA_FORGE_MODELS": "a folder with Stable-diffusion, Lora, VAE and text_encoder",
}
REPOSITORY = Path(__file__).resolve().parents[2]


class Forge(Host):
    """Started with its own folders, on CPU."""

    models: Path

    def flags(self, checkpoint: str) -> list[str]:
        fixed = ["--always-cpu", "--skip-prepare-environment", "--skip-python-version-check", "--skip-torch-cuda-test"]
        fixed += ["--skip-install", "--api", "--no-download-sd-model"]
        named = {"ckpt": "Stable-diffusion", "lora": "Lora", "vae": "VAE", "text-encoder": "text_encoder"}
        return fixed + [x for flag, name in named.items() for x in (f"--{flag}-dir", str(self.models / name))]

    def use_flux(self, checkpoint: str) -> None:
        parts = [self.models / "VAE/flux_ae.safetensors"]
        parts += [self.models / f"text_encoder/flux_{x}.safetensors" for x in ("clip_l", "t5_tiny")]
        self.options(sd_model_checkpoint=checkpoint, forge_additional_modules=[str(x) for x in parts])
        self.checkpoint = checkpoint

    def use(self, checkpoint: str) -> None:
        if self.checkpoint != checkpoint:
            self.options(sd_model_checkpoint=checkpoint, forge_additional_modules=[])
            self.checkpoint = checkpoint


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    missing = [f"{name} ({what})" for name, what in VARIABLES.items() if not os.environ.get(name)]
    if missing:
        pytest.skip("not set: " + ", ".join(missing))
    folder, python, models = (Path(os.environ[name]).absolute() for name in VARIABLES)
    host = Forge(
        tmp_path_factory.mktemp("forge"), folder, python, models / "Stable-diffusion", models / "Lora", {"klora": REPOSITORY}
    )
    host.models = models
    host.options_file({"live_previews_enable": False, "sd_model_checkpoint": "tiny-sd15.safetensors"})
    try:
        host.start("tiny-sd15.safetensors")
        yield host
    finally:
        host.stop()
