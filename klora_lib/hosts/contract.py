"""What K-LoRA needs from a WebUI.  One class per family implements it; no other room imports a WebUI's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from ..engine.site import Site
    from ..lora.file import LoraFile

# (modules: Collection[nn.Module] | None = None); while the context is open, their weights are as without K-LoRA
PutAside = Callable[..., AbstractContextManager[None]]


@dataclass(frozen=True)
class Entry:
    """A LoRA as the WebUI lists it."""

    name: str
    path: str


@dataclass(frozen=True)
class Tag:
    """The two weights in a prompt's ``<lora:name:te:unet>``."""

    te: float
    unet: float

    def __add__(self, other: Tag) -> Tag:
        """The weights of two tags of the same LoRA in one prompt."""
        return Tag(self.te + other.te, self.unet + other.unet)


@dataclass(frozen=True)
class TextPart:
    """One LoRA's text-encoder part, which the host adds with weight ``te``.  ``tag``: the tag in the prompt, if any."""

    entry: Entry
    file: LoraFile
    te: float
    tag: Tag | None = None


@dataclass(frozen=True)
class DenoiserCall:
    """One denoiser call: step ``t`` of ``total``, as the denoiser itself counts them."""

    t: int
    total: int
    find_noise_progress: Callable[[], float]  # computed only when it is needed


class Host(Protocol):
    name: str

    def list_loras(self) -> list[str]:
        """Names of all LoRAs, as the WebUI lists them, sorted."""

    def refresh_loras(self) -> None:
        """Look for new LoRA files."""

    def get_lora_folder(self) -> str:
        """The folder in which the WebUI looks for LoRAs, and into which new ones go."""

    def find_lora(self, name: str) -> Entry | None:
        """The listed LoRA with this name or alias; None if there is none.  A path is not accepted as a name."""

    def get_lora(self, name: str) -> Entry:
        """The same, also if ``name`` lacks blanks at its ends.  Raises SettingsError if there is none, or more than one."""

    def get_device(self) -> torch.device:
        """The device on which the model computes."""

    def estimate_sampling_memory(self, p: Any) -> int:
        """Device memory that sampling ``p`` will need beside the model's weights, in bytes, at most."""

    def has_model(self) -> bool:
        """Whether a checkpoint is loaded now; asking does not load one."""

    def is_drawing(self) -> bool:
        """Whether a job runs now."""

    def save_grid(self, p: Any, picture: Any, name: str, infotext: str) -> None:
        """Save a PIL picture where and as the host saves the grids of the job, if it does."""

    def get_checkpoint_name(self) -> str:
        """Name of the loaded checkpoint."""

    def find_sites(self) -> Mapping[str, Site]:
        """Every layer of the loaded denoiser by canonical name.  Valid for one pass only: the host may swap the model."""

    def finish_merging(self, modules: Iterable[nn.Module]) -> None:
        """Have the host merge now what it would merge into these layers later, so that their weights are final."""

    def take_tags(self, network_data: Any, entries: Iterable[Entry]) -> dict[str, Tag]:
        """Remove the tags of ``entries`` from a prompt's network data.  Returns their weights by entry name.

        If a LoRA has several tags, their weights are added.
        The host may pass the same network data again, with the tags that we added the first time: the result is the same.
        """

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart], keep: bool = True) -> None:
        """Have the host add ``parts`` to the text encoders, and nothing of these LoRAs to the denoiser.

        keep: whether the hires pass has the same parts, so that the host may go on with what is loaded.
        """

    def wrap_sampling(self, p: Any, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """Run the next sampling pass of ``p`` inside ``context(steps)``.  An exception from it ends the job."""

    def refuse_script(self, p: Any) -> None:
        """Raise HostError if another script samples ``p`` by itself and does not call the hook that K-LoRA uses."""

    def watch_refiner(self, p: Any, act: Callable[[], None]) -> AbstractContextManager[None]:
        """While open, call ``act`` before the refiner's checkpoint replaces the model in the middle of a pass."""

    def watch_model_moves(self, act: Callable[[], None]) -> AbstractContextManager[None]:
        """While open, call ``act`` before the model is unloaded, or another checkpoint is loaded into it."""

    def wrap_rewrites(self, put_aside: PutAside) -> AbstractContextManager[None]:
        """While open, whenever the host itself writes weights during a pass, it does so inside ``put_aside(modules)``.

        If the host does not say which modules it writes: inside ``put_aside()``, for the whole model.
        """

    def wrap_jobs(self, context: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        """While open, every other job that begins during the pass runs inside ``context()``."""

    def find_start(self, p: Any) -> float:
        """The progress at which the next pass begins: 1 − denoising strength for img2img and hires, 0 for txt2img."""

    def read_call(self, params: Any) -> DenoiserCall:
        """The denoiser's step counter, read in a denoiser callback."""

    def has_fixed_steps(self, p: Any) -> bool:
        """Whether the sampler of ``p`` takes a number of steps that is known in advance."""

    def count_calls(self, p: Any) -> int:
        """How many denoiser calls the running pass has made, as the sampler counts them."""

    def is_stopped(self) -> bool:
        """Whether the user has interrupted or skipped the image."""

    def make_stop(self) -> BaseException:
        """The exception that a denoiser callback raises to end the pass at once."""
