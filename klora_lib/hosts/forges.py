"""What the Forges have in common: a model patcher that merges LoRAs when it loads the model, before a pass begins."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import HostError
from ..patching import wrap_functions
from ..rule.schedule import compute_noise_progress
from .family import Family, find_largest_size

if TYPE_CHECKING:
    from .contract import PutAside

LEAST_MEMORY = 1 << 30  # bytes that sampling needs, even if the host's estimate is lower


class Forges(Family):
    """What of ``contract.Host`` is the same in every Forge."""

    def has_model(self) -> bool:
        """False while a chosen checkpoint waits to be loaded, which the Forges do when the next job begins."""
        from modules import sd_models, shared

        if not super().has_model() or not hasattr(shared.sd_model, "forge_objects"):  # a placeholder until the first job
            return False
        chosen = getattr(sd_models.model_data, "forge_loading_parameters", None)
        return not chosen or str(chosen) == sd_models.model_data.forge_hash

    def get_model(self) -> Any:
        from modules import shared

        if not hasattr(shared.sd_model, "forge_objects"):
            raise HostError("no checkpoint is loaded")
        return shared.sd_model

    def get_device(self) -> torch.device:
        return torch.device(self.get_model().forge_objects.unet.load_device)

    def estimate_sampling_memory(self, p: Any) -> int:
        """The host's own estimate, for both halves of guidance, if its patcher has one."""
        patcher = self.get_model().forge_objects.unet
        if not hasattr(patcher, "memory_required"):
            return super().estimate_sampling_memory(p)
        width, height = find_largest_size(p)
        return max(LEAST_MEMORY, int(patcher.memory_required([2 * p.batch_size, 4, height // 8, width // 8])))

    def finish_merging(self, modules: Iterable[nn.Module]) -> None:
        """Does nothing: the host loads the model and merges its LoRAs before it launches a sampler."""

    def wrap_rewrites(self, put_aside: PutAside) -> AbstractContextManager[None]:
        return wrap_patching(self.get_model().forge_objects.unet, put_aside)

    def find_noise_progress(self, denoiser: Any, sigma: torch.Tensor) -> float:
        """From the model's own table.  In the Forges, DDIM, PLMS and UniPC pass a noise level too, not a timestep."""
        model = self.get_model().forge_objects.unet.model
        return find_noise_progress(model.predictor if hasattr(model, "predictor") else model.model_sampling, sigma)


def read_loaded_loras(model: Any) -> list[list[Any]]:
    """[path, denoiser weight, text encoder weight] of every LoRA on ``model``, in the order in which they were added.

    The host stores this list as text in an attribute that it calls a hash.  It loads LoRAs only if the list has changed.
    Raises HostError if the text cannot be read.
    """
    written = getattr(model, "current_lora_hash", None)
    try:
        return [[str(path), weight, te] for path, weight, te, *_ in literal_eval(written)]  # type: ignore[arg-type]
    except (TypeError, ValueError, SyntaxError):
        found = f"its list of loaded LoRAs reads {written!r}"
        raise HostError(f"this WebUI's LoRA loader has changed: {found}") from None


PATCHING = ("load", "patch_model", "unpatch_model", "partially_load", "partially_unload")


@contextmanager
def wrap_patching(unet: Any, put_aside: PutAside) -> Iterator[None]:
    """While open, every patcher of ``unet``'s model patches, unpatches and moves weights inside ``put_aside()``.

    These hosts then replace the parameters that K-LoRA writes.  It happens during a pass when another patcher is loaded
    (Fooocus inpaint), or when something else needs the memory (a full preview).
    """

    def context(patcher: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return put_aside() if patcher.model is unet.model else nullcontext()

    with ExitStack() as stack:
        for owner in type(unet).__mro__:
            names = tuple(name for name in PATCHING if name in vars(owner))
            stack.enter_context(wrap_functions(owner, names, context))
        yield


def find_noise_progress(predictor: Any, sigma: torch.Tensor) -> float:
    """Progress by noise, in [0, 1): from the table of a discrete model, or from the formula of a flow model."""
    if hasattr(predictor, "log_sigmas"):
        return compute_noise_progress(interpolate_timestep(predictor.log_sigmas, sigma), len(predictor.log_sigmas))
    most = predictor.sigma_max() if callable(predictor.sigma_max) else predictor.sigma_max
    last = float(predictor.timestep(torch.as_tensor(most).reshape(1)).max())
    return compute_noise_progress(float(predictor.timestep(sigma.reshape(1)).max()), last + 1)


def interpolate_timestep(log_sigmas: torch.Tensor, sigma: torch.Tensor) -> float:
    """The timestep of a noise level, interpolated between two entries of the table (the host itself takes the nearer one).

    Args: log_sigmas: [N], rising.  sigma: one element.
    """
    table = log_sigmas.cpu().double()  # not every device has fp64
    x = sigma.cpu().double().log().reshape(()).clamp(table[0], table[-1])
    after = int(torch.searchsorted(table, x).clamp(1, len(table) - 1))
    return after - float((table[after] - x) / (table[after] - table[after - 1]))
