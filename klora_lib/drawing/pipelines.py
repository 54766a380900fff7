"""The diffusers pipeline for ``--model`` and ``--sampler``; nothing is downloaded."""

from __future__ import annotations

import inspect
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..diffusers.clock import is_flow
from ..errors import KLoraError, SettingsError, quote_first_line
from ..lora.container import read_header
from ..settings import quote_value

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {  # the WebUI's name → diffusers' scheduler
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
FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
# the fields of a scheduler's configuration that describe how the model was trained
TRAINING_FIELDS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "timestep_type", "sigma_min", "sigma_max",
)  # fmt: skip
SPACING_FIELDS = ("timestep_spacing", "steps_offset", "set_alpha_to_one")  # which timesteps the model expects
FLOW_FIELDS = (  # both, for a flow model
    "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "time_shift_type", "shift_terminal", "invert_sigmas",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHECKPOINTS = (  # (text in a key of such a single file, its pipeline)
    ("joint_blocks.", "StableDiffusion3Pipeline"),
    ("double_blocks.", "FluxPipeline"),
    ("conditioner.embedders.1.", "StableDiffusionXLPipeline"),
    ("cond_stage_model.", "StableDiffusionPipeline"),
)


def import_diffusers() -> ModuleType:
    """The module diffusers.  Raises KLoraError if it or transformers is not installed."""
    try:
        import diffusers
        import transformers  # noqa: F401  without it, diffusers has no usable pipelines
    except ImportError as e:
        install = "pip install '.[diffusers]', in the project's folder"
        raise KLoraError(f"drawing needs diffusers and transformers ({e}): {install}") from None
    return diffusers


def import_toy() -> Any:
    """The module klora_lib.toy.  Raises SettingsError if it was removed from this installation."""
    try:
        from .. import toy  # type: ignore[attr-defined,unused-ignore]
    except ImportError:
        raise SettingsError("the toy model is not part of this installation", "model") from None
    return toy


def find_lora(name: str, model: str, role: str) -> Path:
    """The path ``name``.  With the toy model it may be the name of one of the toy's LoRAs, which must have this role."""
    path = Path(name)
    if model != "toy" or (name not in import_toy().list_loras() and (path.suffix or find_kind(path, role))):
        return path
    try:
        return Path(import_toy().find_lora(name, role))
    except KLoraError as e:
        raise e.blame(role) from None


def find_kind(path: Path, field: str) -> str:
    """"folder", "file", or "" if nothing is there.  Raises SettingsError if the system does not allow to look."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as e:
        raise SettingsError(f"{quote_value(str(path))} cannot be opened ({e.strerror})", field) from None
    return "folder" if stat.S_ISDIR(mode) else "file"


@contextmanager
def silence_libraries() -> Iterator[None]:
    """While open, diffusers and transformers log nothing and show no progress bars on stderr."""
    logs = [import_diffusers().utils.logging, __import__("transformers").utils.logging]
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


def load_pipeline(model: str, device: str | None, dtype: str | None) -> Any:
    """The pipeline at ``model`` (a diffusers folder, a .safetensors checkpoint, or "toy") on ``device``.

    Raises a KLoraError, one sentence, if something is missing or cannot be read.
    """
    where = choose_device(device)
    if model == "toy":
        with silence_libraries():
            pipe = import_toy().load_pipeline()
    else:
        kind = DTYPES[dtype] if dtype else torch.float32 if where == "cpu" else torch.float16
        with silence_libraries():
            pipe = read_pipeline(model, kind)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(where)
    except (RuntimeError, AssertionError) as e:
        raise SettingsError(f"{where!r} cannot be used: {quote_first_line(e)}", "device") from None


def choose_device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def read_pipeline(model: str, dtype: torch.dtype) -> Any:
    """The pipeline from a diffusers folder or a checkpoint file.  Raises SettingsError if it cannot draw from a prompt."""
    path, diffusers = Path(model), import_diffusers()
    kind = find_kind(path, "model")
    if kind == "folder":
        if find_kind(path / "model_index.json", "model") != "file":
            raise SettingsError(f"{model!r} is no diffusers folder, it has no model_index.json", "model")
        loader, cls = "from_pretrained", diffusers.DiffusionPipeline
    elif kind == "file":
        loader, cls = "from_single_file", getattr(diffusers, find_pipeline_class(path))
    else:
        raise SettingsError(f"there is nothing at {model!r}", "model")
    try:
        pipe = getattr(cls, loader)(os.fspath(path), torch_dtype=dtype, local_files_only=True)
    except Exception as e:  # noqa: BLE001  a damaged model leads to many types of exceptions
        raise SettingsError(f"{model!r} cannot be loaded without a download: {quote_first_line(e)}", "model") from None
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "prompt" not in parameters:
        raise SettingsError(f"{model!r} is a {type(pipe).__name__}, which draws nothing from a prompt", "model")
    if needs_picture(parameters):
        raise SettingsError(f"{model!r} is a {type(pipe).__name__}, which draws nothing without a picture", "model")
    return pipe


def needs_picture(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a pipeline whose call has these parameters needs a picture as input.

    In diffusers nearly every argument has the default None.  Only those with None in their annotation are optional.
    """
    pictures = [parameters[name] for name in ("image", "mask_image", "control_image") if name in parameters]
    return "strength" in parameters or any(p.default is p.empty or "None" not in str(p.annotation) for p in pictures)


def find_pipeline_class(path: Path) -> str:
    """The name of the pipeline class for a single checkpoint file, found from the names of its tensors."""
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path.name!r} is neither a folder nor a .safetensors checkpoint", "model")
    try:
        with open(path, "rb") as file:
            length = file.read(8)
            keys = read_header(length + file.read(min(int.from_bytes(length, "little"), 1 << 27)), path.name)[0]
    except OSError as e:
        raise SettingsError(f"{path.name!r} cannot be opened ({e.strerror})", "model") from None
    except KLoraError as e:
        raise e.blame("model") from None
    found = next((name for part, name in CHECKPOINTS if any(part in key for key in keys)), None)
    if found is None:
        raise SettingsError(
            f"{path.name!r} is no checkpoint of SD1.5, SD2, SDXL, SD3 or Flux with its text encoders", "model"
        )
    return found


def make_arguments(
    prompt: str, negative: str, steps: int, cfg: float | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """The arguments of a pipeline call; values that are not given are left out, so that the pipeline's defaults apply."""
    given: dict[str, Any] = {"prompt": prompt, "num_inference_steps": steps}
    given |= {"negative_prompt": negative} if negative else {}
    given |= {"guidance_scale": cfg} if cfg is not None else {}
    given |= {"width": size[0], "height": size[1]} if size else {}
    return given


def use_sampler(pipe: Any, name: str | None) -> str:
    """Put the named sampler into the pipeline.  Returns its name for the infotext.

    Raises SettingsError for an unknown name.  None leaves the pipeline's own sampler.
    """
    samplers = list_samplers(pipe)
    if name is None:
        return name_sampler(pipe)
    found = next((each for each in samplers if each.lower() == name.lower()), None)
    if found is None:
        raise SettingsError(f"{quote_value(name)} is none of this model's: {', '.join(samplers)}", "sampler")
    pipe.scheduler = make_scheduler(pipe.scheduler, *samplers[found])
    return found


def list_samplers(pipe: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    if not is_flow(pipe.scheduler):
        return SAMPLERS
    if type(pipe).__name__.startswith("Flux"):  # it gives its own noise levels to the scheduler; Heun's accepts none
        return {name: FLOW[name] for name in FLOW if name != "Heun"}
    return FLOW


def make_scheduler(present: Any, kind: str, more: Mapping[str, Any]) -> Any:
    """A scheduler of class ``kind`` with the noise schedule of the model's ``present`` one.

    If a flow model's scheduler already is of this class, its whole configuration is used.
    """
    config = present.config
    if is_flow(present):
        shift = {"shift": config["flow_shift"]} if "flow_shift" in config else {}
        same = kind == type(present).__name__
        copied = dict(config) if same else {**shift, **{k: v for k, v in config.items() if k in FLOW_FIELDS}}
    else:
        defaults = config.get("_use_default_values", ())  # fields that the model does not set
        copied = {k: v for k, v in config.items() if k in TRAINING_FIELDS or (k in SPACING_FIELDS and k not in defaults)}
    with silence_libraries():
        return getattr(import_diffusers(), kind).from_config(copied, **more)


def name_sampler(pipe: Any) -> str:
    """The name with which `use_sampler` would make the pipeline's present scheduler; diffusers' name if there is none."""
    present = pipe.scheduler
    kind = type(present).__name__
    fields = [name for name in inspect.signature(type(present).__init__).parameters if name != "self"]
    for name, (scheduler, more) in list_samplers(pipe).items():
        if scheduler == kind:
            config = make_scheduler(present, scheduler, more).config
            if all(config.get(key) == present.config.get(key) for key in fields):
                return name
    return kind.removesuffix("Scheduler")
