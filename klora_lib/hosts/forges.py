"""What the Forges have in common: a model patcher that merges LoRAs when it loads the model, before a pass begins."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import HostError
from ..patching import inside
from ..rule.schedule import noise_progress
from .contract import Aside
from .family import Family, largest_size

LEAST = 1 << 30  # bytes that sampling needs, however little the host expects


class Forges(Family):
    """The part of ``contract.Host`` that is the same in every Forge."""

    def model(self) -> Any:
        from modules import shared

        if not hasattr(shared.sd_model, "forge_objects"):
            raise HostError("no checkpoint is loaded")
        return shared.sd_model

    def device(self) -> torch.device:
        return torch.device(self.model().forge_objects.unet.load_device)

    def sampling_memory(self, p: Any) -> int:
        """The host's own estimate, for both halves of guidance, where its patcher makes one."""
        patcher = self.model().forge_objects.unet
        if not hasattr(patcher, "memory_required"):
            return super().sampling_memory(p)
        width, height = largest_size(p)
        return max(LEAST, int(patcher.memory_required([2 * p.batch_size, 4, height // 8, width // 8])))

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Nothing is pending: a sampler is launched after the model has been loaded and its LoRAs merged."""

    def around_rewrites(self, aside: Aside) -> AbstractContextManager[None]:
        return patching_aside(self.model().forge_objects.unet, aside)

    def noise(self, denoiser: Any, sigma: torch.Tensor) -> float:
        """By the model's own table: here DDIM, PLMS and UniPC, too, hand over a noise level and no timestep."""
        model = self.model().forge_objects.unet.model
        return predicted_progress(model.predictor if hasattr(model, "predictor") else model.model_sampling, sigma)


def loaded_loras(model: Any) -> list[list[Any]]:
    """[path, denoiser weight, text encoder weight] of every LoRA on ``model``, in the order they were added.

    The host keeps this list, written out, under the name of a hash: it loads only what differs from it.
    """
    written = getattr(model, "current_lora_hash", None)
    try:
        return [[str(path), weight, te] for path, weight, te, *_ in literal_eval(written)]  # type: ignore[arg-type]
    except (TypeError, ValueError, SyntaxError):
        told = f"its list of loaded LoRAs reads {written!r}"
        raise HostError(f"this WebUI's LoRA loader has changed: {told}") from None


PATCHING = ("load", "patch_model", "unpatch_model", "partially_load", "partially_unload")


@contextmanager
def patching_aside(unet: Any, aside: Aside) -> Iterator[None]:
    """While open, every patcher of ``unet``'s model that patches, unpatches or moves weights does so inside ``aside()``.

    These hosts do it by putting other parameters in the place of those that we write; within a pass where another patcher
    is loaded (Fooocus inpaint) or where something else needs the memory (a full preview).
    """

    def context(patcher: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return aside() if patcher.model is unet.model else nullcontext()

    with ExitStack() as stack:
        for owner in type(unet).__mro__:
            own = tuple(name for name in PATCHING if name in vars(owner))
            stack.enter_context(inside(owner, own, context))
        yield


def predicted_progress(predictor: Any, sigma: torch.Tensor) -> float:
    """Progress by the table of a Forge's discrete model, or by the formula of one that has none (flow)."""
    if hasattr(predictor, "log_sigmas"):
        return noise_progress(timestep_between(predictor.log_sigmas, sigma), len(predictor.log_sigmas))
    most = predictor.sigma_max() if callable(predictor.sigma_max) else predictor.sigma_max
    last = float(predictor.timestep(torch.as_tensor(most).reshape(1)).max())
    return noise_progress(float(predictor.timestep(sigma.reshape(1)).max()), last + 1)


def timestep_between(log_sigmas: torch.Tensor, sigma: torch.Tensor) -> float:
    """Where a noise level lies in the table, between two entries (the host's own answer is the nearer one).

    Args: log_sigmas: [N], rising.  sigma: one element.
    """
    table = log_sigmas.cpu().double()  # not every device has fp64
    x = sigma.cpu().double().log().reshape(()).clamp(table[0], table[-1])
    after = int(torch.searchsorted(table, x).clamp(1, len(table) - 1))
    return after - float((table[after] - x) / (table[after] - table[after - 1]))
