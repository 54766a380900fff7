"""How a refusal reaches the user: HTTP 422 from the API, the error line under the image in the UI, no image in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fastapi import HTTPException


class KLoraRefused(HTTPException):
    """Status 422; ``detail`` is the sentence.  The UI shows "KLoraRefused: <sentence>"."""

    def __init__(self, sentence: str):
        super().__init__(status_code=422, detail=sentence)

    def __str__(self) -> str:
        return str(self.detail)


def refuse(p: Any, error: Exception) -> None:
    """End the job of ``p`` before it samples.

    Hosts swallow what a script hook raises and go on without it; ``p.init``, the first thing after the hooks, is heard.
    """
    p.init = make_raiser(error)


def refuse_sampling(p: Any, error: Exception) -> None:
    """End the job of ``p`` at the sampling pass that is about to begin."""
    p.sampler.sample = p.sampler.sample_img2img = make_raiser(error)


def make_raiser(error: Exception) -> Callable[..., NoReturn]:
    def act(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    return act
