"""From ``--model`` and ``--sampler`` to a diffusers pipeline; nothing is downloaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..core.lora import read_header
from ..errors import KLoraError, SettingsError
from ..hosts.diffusers.clock import flow
from ..settings import shown

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # the WebUI's name: diffusers' scheduler
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
FLOW = {"Euler": "FlowMatchEulerDiscreteScheduler", "Heun": "FlowMatchHeunDiscreteScheduler"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHECKPOINTS = (  # a key of each architecture's single files
    ("joint_blocks.", "StableDiffusion3Pipeline"),
    ("double_blocks.", "FluxPipeline"),
    ("conditioner.embedders.1.", "StableDiffusionXLPipeline"),
    ("cond_stage_model.", "StableDiffusionPipeline"),
)


def diffusers() -> ModuleType:
    try:
        import diffusers
        import transformers  # noqa: F401  without which diffusers has stand-ins for its pipelines
    except ImportError as e:
        raise KLoraError(f"drawing needs diffusers and transformers ({e}): pip install 'klora-webui[diffusers]'") from None
    return diffusers


def toy() -> Any:
    try:
        from .. import toy  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        raise SettingsError("the toy model is not part of this installation", "model") from None
    return toy


def lora_path(name: str, model: str) -> Path:
    """A file; or, with the toy model, one of the toy's by name."""
    path = Path(name)
    return toy().lora(name) if model == "toy" and not path.exists() and path.suffix == "" else path


@contextmanager
def quiet() -> Iterator[None]:
    """What diffusers and transformers would tell of loading is kept from stderr, where our own bar and errors go."""
    logs = [diffusers().utils.logging, __import__("transformers").utils.logging]
    levels = [log.get_verbosity() for log in logs]
    try:
        for log in logs:
            log.set_verbosity(50)
            log.disable_progress_bar()
        yield
    finally:
        for log, level in zip(logs, levels):
            log.set_verbosity(level)
            log.enable_progress_bar()


def load(model: str, device: str | None, dtype: str | None) -> Any:
    """The pipeline at ``model`` (a diffusers folder, a .safetensors checkpoint, or "toy") on ``device``.

    Raises a KLoraError, one sentence, for whatever is not there or cannot be read.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model == "toy":
        pipe = toy().pipeline()
    else:
        kind = DTYPES[dtype] if dtype else torch.float32 if where == "cpu" else torch.float16
        with quiet():
            pipe = read(model, kind)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(where)
    except (RuntimeError, AssertionError) as e:
        raise SettingsError(f"{where!r} cannot be used: {first_line(e)}", "device") from None


def read(model: str, dtype: torch.dtype) -> Any:
    path, made = Path(model), diffusers()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise SettingsError(f"{model!r} is no diffusers folder, it has no model_index.json", "model")
        open_it, owner = "from_pretrained", made.DiffusionPipeline
    elif path.is_file():
        open_it, owner = "from_single_file", getattr(made, checkpoint_class(path))
    else:
        raise SettingsError(f"there is nothing at {model!r}", "model")
    try:
        pipe = getattr(owner, open_it)(os.fspath(path), torch_dtype=dtype, local_files_only=True)
    except Exception as e:  # noqa: BLE001  diffusers, transformers and their readers raise all kinds for a damaged model
        raise SettingsError(f"{model!r} cannot be loaded without a download: {first_line(e)}", "model") from None
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise SettingsError(f"{model!r} is a {type(pipe).__name__}, which draws nothing from a prompt", "model")
    return pipe


def checkpoint_class(path: Path) -> str:
    """The pipeline for a single file, by the names of its tensors."""
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path.name!r} is neither a folder nor a .safetensors checkpoint", "model")
    try:
        with open(path, "rb") as file:
            length = file.read(8)
            keys = read_header(length + file.read(min(int.from_bytes(length, "little"), 1 << 27)), path.name)[0]
    except OSError as e:
        raise SettingsError(f"{path.name!r} cannot be opened ({e.strerror})", "model") from None
    except KLoraError as e:
        raise e.about("model") from None
    found = next((name for part, name in CHECKPOINTS if any(part in key for key in keys)), None)
    if found is None:
        raise SettingsError(
            f"{path.name!r} is no checkpoint of SD1.5, SD2, SDXL, SD3 or Flux with its text encoders", "model"
        )
    return found


def call_arguments(
    prompt: str, negative: str, steps: int, cfg: float | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """What a pipeline is called with; what is not given is left to it."""
    given: dict[str, Any] = {"prompt": prompt, "num_inference_steps": steps}
    given |= {"negative_prompt": negative} if negative else {}
    given |= {"guidance_scale": cfg} if cfg is not None else {}
    given |= {"width": size[0], "height": size[1]} if size else {}
    return given


def use_sampler(pipe: Any, name: str | None) -> str:
    """Put the named sampler into the pipeline; the name to write into the infotext."""
    if name is None:
        return type(pipe.scheduler).__name__.removesuffix("Scheduler")
    flows = flow(pipe.scheduler)
    known = {k: (v, {}) for k, v in FLOW.items()} if flows else SAMPLERS
    found = next((each for each in known if each.lower() == name.lower()), None)
    if found is None:
        raise SettingsError(f"{shown(name)} is none of this model's: {', '.join(known)}", "sampler")
    scheduler, more = known[found]
    config = pipe.scheduler.config.items()  # a name says which noise levels, too: those of the model's own do not stay
    kept = {k: v for k, v in config if (k in ("shift", "use_dynamic_shifting") if flows else k != "use_karras_sigmas")}
    with quiet():
        pipe.scheduler = getattr(diffusers(), scheduler).from_config(kept, **more)
    return found


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
