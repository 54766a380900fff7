"""From ``--model`` and ``--sampler`` to a diffusers pipeline; nothing is downloaded."""

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
from ..errors import KLoraError, SettingsError, first_line
from ..lora.container import read_header
from ..settings import quote_value

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
FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
# of a scheduler's settings, those that say how the model was trained, ...
TRAINED = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "timestep_type", "sigma_min", "sigma_max",
)  # fmt: skip
SPACED = ("timestep_spacing", "steps_offset", "set_alpha_to_one")  # ... and at which timesteps it wants to be asked
SHIFTED = (  # the same of a flow model
    "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
    "max_image_seq_len", "time_shift_type", "shift_terminal", "invert_sigmas",
)  # fmt: skip
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


def lora_path(name: str, model: str, role: str) -> Path:
    """A file; or, with the toy model, one of the toy's by name, which must be of that role."""
    path = Path(name)
    if model != "toy" or (name not in toy().loras() and (path.suffix or kind_of(path, role))):
        return path
    try:
        return Path(toy().lora(name, role))
    except KLoraError as e:
        raise e.about(role) from None


def kind_of(path: Path, field: str) -> str:
    """"folder" or "file", or "" where there is nothing.  Raises SettingsError where that cannot be known."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as e:
        raise SettingsError(f"{quote_value(str(path))} cannot be opened ({e.strerror})", field) from None
    return "folder" if stat.S_ISDIR(mode) else "file"


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
    where = chosen(device)
    if model == "toy":
        with quiet():
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


def chosen(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def read(model: str, dtype: torch.dtype) -> Any:
    path, made = Path(model), diffusers()
    kind = kind_of(path, "model")
    if kind == "folder":
        if kind_of(path / "model_index.json", "model") != "file":
            raise SettingsError(f"{model!r} is no diffusers folder, it has no model_index.json", "model")
        open_it, owner = "from_pretrained", made.DiffusionPipeline
    elif kind == "file":
        open_it, owner = "from_single_file", getattr(made, checkpoint_class(path))
    else:
        raise SettingsError(f"there is nothing at {model!r}", "model")
    try:
        pipe = getattr(owner, open_it)(os.fspath(path), torch_dtype=dtype, local_files_only=True)
    except Exception as e:  # noqa: BLE001  diffusers, transformers and their readers raise all kinds for a damaged model
        raise SettingsError(f"{model!r} cannot be loaded without a download: {first_line(e)}", "model") from None
    asked = inspect.signature(type(pipe).__call__).parameters
    if "prompt" not in asked:
        raise SettingsError(f"{model!r} is a {type(pipe).__name__}, which draws nothing from a prompt", "model")
    if wants_a_picture(asked):
        raise SettingsError(f"{model!r} is a {type(pipe).__name__}, which draws nothing without a picture", "model")
    return pipe


def wants_a_picture(asked: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a pipeline that is called like this works on a picture.

    diffusers gives nearly every argument the default None; it is those annotated so that may be left out.
    """
    pictures = [asked[name] for name in ("image", "mask_image", "control_image") if name in asked]
    return "strength" in asked or any(p.default is p.empty or "None" not in str(p.annotation) for p in pictures)


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
    known = samplers_of(pipe)
    if name is None:
        return sampler_of(pipe)
    found = next((each for each in known if each.lower() == name.lower()), None)
    if found is None:
        raise SettingsError(f"{quote_value(name)} is none of this model's: {', '.join(known)}", "sampler")
    pipe.scheduler = scheduler(pipe.scheduler, *known[found])
    return found


def samplers_of(pipe: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    if not is_flow(pipe.scheduler):
        return SAMPLERS
    if type(pipe).__name__.startswith("Flux"):  # it hands its own noise levels to the scheduler; Heun's takes none
        return {name: FLOW[name] for name in FLOW if name != "Heun"}
    return FLOW


def scheduler(own: Any, kind: str, more: Mapping[str, Any]) -> Any:
    """A scheduler of class ``kind`` for the model whose own is ``own``: the model's schedule stays, the sampler does not.

    A flow model's own class stays as it is set.
    """
    config = own.config
    if is_flow(own):
        shift = {"shift": config["flow_shift"]} if "flow_shift" in config else {}
        same = kind == type(own).__name__
        kept = dict(config) if same else {**shift, **{k: v for k, v in config.items() if k in SHIFTED}}
    else:
        unsaid = config.get("_use_default_values", ())  # of the model's class, and no word of the model
        kept = {k: v for k, v in config.items() if k in TRAINED or (k in SPACED and k not in unsaid)}
    with quiet():
        return getattr(diffusers(), kind).from_config(kept, **more)


def sampler_of(pipe: Any) -> str:
    """The name under which `use_sampler` would put in what the pipeline has; diffusers' where there is none."""
    own = pipe.scheduler
    kind = type(own).__name__
    asked = [name for name in inspect.signature(type(own).__init__).parameters if name != "self"]
    for name, (named, more) in samplers_of(pipe).items():
        if named == kind:
            config = scheduler(own, named, more).config
            if all(config.get(key) == own.config.get(key) for key in asked):
                return name
    return kind.removesuffix("Scheduler")
