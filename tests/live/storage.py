"""The rows' models and settings, and a Forge that is brought into them; used by ``tests.live.gpu``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .jobs import Pair
from .kinds import Forge, installed

REPOSITORY = Path(__file__).resolve().parents[2]
ONLINE = " (fp16 LoRA)"
PACKED = ("bnb", "float8", "gguf")


@dataclass(frozen=True)
class Checkpoint:
    """modules: paths inside KLORA_FORGE_MODELS; job: what its requests need beside the tests' own."""

    checkpoint: str
    pair: Pair
    modules: tuple[str, ...] = ()
    job: dict = field(default_factory=dict)

    @property
    def gguf(self) -> bool:
        return self.checkpoint.endswith(".gguf")

    @property
    def other(self) -> str:
        return f"other_{self.pair.style}"


@dataclass(frozen=True)
class Row:
    """weights: "Diffusion in Low Bits".  gpu: MB of weights to be kept on the GPU, None for all, so nothing is streamed."""

    model: Checkpoint
    weights: str = "Automatic"
    gpu: int | None = None
    swap: str = "Queue"
    place: str = "CPU"
    flags: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "gguf" if self.model.gguf else self.weights

    @property
    def packed(self) -> bool:
        return self.kind.startswith(PACKED)

    @property
    def online(self) -> bool:
        return self.weights.endswith(ONLINE)

    @property
    def numbers(self) -> tuple[str, str]:
        """Rows that are equal in this compute with the same weights."""
        return self.model.checkpoint, self.weights.removesuffix(ONLINE)

    @property
    def like_tags(self) -> bool:
        """Do tags do what K-LoRA does?  Into packed weights the host merges them and packs again, which K-LoRA does not."""
        return self.online or not self.packed


class OnGpu(Forge):
    """Forge on the device it finds; options of a row set as its API understands them."""

    cpu = False
    more: tuple[str, ...] = ()

    def flags(self, checkpoint: str) -> list[str]:
        return [x for x in super().flags(checkpoint) if self.cpu or x != "--always-cpu"] + list(self.more)

    def load(self, row: Row) -> None:
        """The type of storage is looked at only when another model or another share of memory is asked for too."""
        total = 1024
        if not self.cpu:
            total = self.must("/sdapi/v1/memory")["cuda"]["system"]["total"] >> 20
        keep = total if row.gpu is None else int(row.gpu * 1.3)  # the host leaves a quarter of what it is given
        for nudge in (1, 0):
            self.options(
                sd_model_checkpoint=row.model.checkpoint,
                forge_additional_modules=[str(self.models_folder / part) for part in row.model.modules],
                forge_unet_storage_dtype=row.weights,
                forge_async_loading=row.swap,
                forge_pin_shared_memory=row.place,
                forge_inference_memory=(1024 if row.gpu is None else total - keep) + nudge,
            )

    def placed(self) -> str:
        """Where the host says that it put the weights of the model it loaded last."""
        told = re.findall(r"Swap Loaded.*?: ([\d.]+) MB, GPU Loaded: ([\d.]+) MB|(All loaded to GPU)", self.log_text())
        return "" if not told else "all there" if told[-1][2] else f"{told[-1][0]} MB streamed, {told[-1][1]} there"


def third(source: Path, target: Path) -> None:
    """Another LoRA for the same layers.  For Flux in diffusers' names: slices of the fused weights the pair acts on."""
    g = torch.Generator().manual_seed(5)
    given = load_file(source)
    if not any("double_blocks" in key for key in given):
        save_file({k: v * -0.5 if "lora_up" in k else v for k, v in given.items() if "lora_te" not in k}, target)
        return
    width = given["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape[1]
    out = {}
    for kind, name in (("double", "transformer_blocks"), ("single", "single_transformer_blocks")):
        for n in sorted({int(m[1]) for m in (re.match(rf"lora_unet_{kind}_blocks_(\d+)_", key) for key in given) if m}):
            for end in ("to_q", "to_k", "to_v"):
                for part, shape in (("A", (4, width)), ("B", (width, 4))):
                    key = f"transformer.{name}.{n}.attn.{end}.lora_{part}.weight"
                    out[key] = (torch.randn(shape, generator=g) * 2.5 / width**0.5).half()
    save_file(out, target)


def started(folder: Path, cpu: bool, flags: tuple[str, ...], checkpoints: list[Checkpoint]) -> OnGpu:
    """With the third LoRAs beside the others."""
    host = installed(OnGpu, folder, {"klora": REPOSITORY, **OnGpu.sizes})
    for checkpoint in checkpoints:
        third(host.lora / f"{checkpoint.pair.style}.safetensors", host.lora / f"{checkpoint.other}.safetensors")
    host.cpu, host.more = cpu, flags
    host.options_file({**host.config, "sd_model_checkpoint": checkpoints[0].checkpoint})
    host.start(checkpoints[0].checkpoint)
    return host
