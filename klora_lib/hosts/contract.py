"""What a WebUI must offer for K-LoRA to run in it.  One class per family fulfils this; nothing else knows a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..engine.site import Site
from ..lora.file import LoraFile

Aside = Callable[..., AbstractContextManager[None]]  # (modules: Collection[nn.Module] | None = None)


@dataclass(frozen=True)
class Entry:
    """A LoRA as the WebUI lists it."""

    name: str
    path: str


@dataclass(frozen=True)
class Tag:
    """What a prompt's ``<lora:name:te:unet>`` says of one LoRA."""

    te: float
    unet: float

    def __add__(self, other: Tag) -> Tag:
        """Both tags in one prompt."""
        return Tag(self.te + other.te, self.unet + other.unet)


@dataclass(frozen=True)
class TextPart:
    """One LoRA's text-encoder part, to be added by the host itself with weight ``te``.  ``tag``: the prompt's, if any."""

    entry: Entry
    file: LoraFile
    te: float
    tag: Tag | None = None


@dataclass(frozen=True)
class Call:
    """One model call as the denoiser counts it."""

    t: int
    total: int
    noise: Callable[[], float]  # progress by noise, found only when asked for


class Host(Protocol):
    name: str

    def loras(self) -> list[str]:
        """Names as listed, sorted."""

    def refresh(self) -> None:
        """Look for new LoRA files."""

    def find(self, name: str) -> Entry | None:
        """The listed LoRA of that name or alias; None where there is none.  Never a path."""

    def device(self) -> torch.device:
        """Where the model computes."""

    def sampling_memory(self, p: Any) -> int:
        """Bytes of the device that the sampling of ``p`` itself will need beside the model's weights, at most."""

    def checkpoint(self) -> str:
        """Name of the loaded checkpoint."""

    def sites(self) -> Mapping[str, Site]:
        """Every layer of the loaded denoiser by canonical name.  Not to be kept beyond a pass: models are swapped."""

    def settle(self, modules: Iterable[nn.Module]) -> None:
        """Let the host finish what it has pending on these layers, so that their weights are what it wants of them."""

    def take_tags(self, network_data: Any, entries: Iterable[Entry]) -> dict[str, Tag]:
        """Remove the tags of ``entries`` from a prompt's network data, and tell what they said, by entry name.

        A LoRA tagged more than once gets the sum.
        Network data may come again with what we put into it the first time: the answer is the same.
        """

    def load_text_parts(self, p: Any, network_data: Any, parts: Iterable[TextPart]) -> None:
        """Have the text encoders carry ``parts``, and no denoiser layer anything of these LoRAs."""

    def around_sampling(self, p: Any, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """Run the coming sampling pass of ``p`` inside ``context(steps)``; what it raises ends the job."""

    def refuse_script(self, p: Any) -> None:
        """Raise HostError where another script samples ``p`` in a way of its own, never asking the hook by which we act."""

    def before_refiner(self, p: Any, act: Callable[[], None]) -> AbstractContextManager[None]:
        """While open: call ``act`` before the refiner's checkpoint replaces the model in the middle of a pass."""

    def before_model_moves(self, act: Callable[[], None]) -> AbstractContextManager[None]:
        """While open: call ``act`` before the loaded model is unloaded, or another checkpoint loaded into it."""

    def around_rewrites(self, aside: Aside) -> AbstractContextManager[None]:
        """While open: whatever the host itself writes into weights within a pass, it writes inside ``aside(modules)``.

        Without modules: inside ``aside()``, which is the whole model.
        """

    def around_jobs(self, context: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        """While open: a whole job that begins within the pass, whoever starts it, runs inside ``context()``."""

    def start(self, p: Any) -> float:
        """Where the coming pass begins: 1 − denoising strength for img2img and hires, 0 for txt2img."""

    def call(self, params: Any) -> Call:
        """The denoiser's clock at a denoiser callback."""

    def fixed_steps(self, p: Any) -> bool:
        """Does the sampler of ``p`` know how many steps it will take?"""

    def calls(self, p: Any) -> int:
        """How many denoiser calls the running pass has made, by the sampler's own count."""

    def stopped(self) -> bool:
        """Whether the user has interrupted or skipped the image."""

    def stop_sampling(self) -> BaseException:
        """What a denoiser callback raises to end the pass at once."""
