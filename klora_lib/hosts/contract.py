"""What a WebUI must offer for K-LoRA to run in it.  One class per family fulfils this; nothing else knows a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..core.lora import LoraFile
from ..engine.site import Site


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

    def before_model_swap(self, p: Any, act: Callable[[], None]) -> AbstractContextManager[None]:
        """While open: call ``act`` before another checkpoint replaces the model in the middle of a pass (refiner)."""

    def around_rewrites(self, aside: Callable[[], AbstractContextManager[None]]) -> AbstractContextManager[None]:
        """While open: whatever the host itself writes into weights within a pass, it writes inside ``aside()``."""

    def start(self, p: Any) -> float:
        """Where the coming pass begins: 1 − denoising strength for img2img and hires, 0 for txt2img."""

    def call(self, params: Any) -> Call:
        """The denoiser's clock at a denoiser callback."""

    def fixed_steps(self, p: Any) -> bool:
        """Does the sampler of ``p`` know how many steps it will take?"""

    def stop_sampling(self) -> BaseException:
        """What a denoiser callback raises to end the pass at once."""
