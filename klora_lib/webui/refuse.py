"""How a refusal reaches the user: as HTTP 422 from the API, as the error line in the UI; in both without an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fastapi import HTTPException


class KLoraRefused(HTTPException):
    """``detail`` is the sentence.  The UI shows "KLoraRefused: <sentence>"."""

    def __init__(self, sentence: str, status: int = 422):
        super().__init__(status_code=status, detail=sentence)

    def __str__(self) -> str:
        return str(self.detail)


def refuse(p: Any, error: Exception) -> None:
    """End the job of ``p`` with ``error`` before it samples.

    Hosts ignore exceptions from a script's hook.  They do not ignore those of ``p.init``, which they call after the hooks.
    """
    p.init = make_raiser(error)


def refuse_sampling(p: Any, error: Exception) -> None:
    """End the job of ``p`` with ``error`` when the next sampling pass begins."""
    p.sampler.sample = p.sampler.sample_img2img = make_raiser(error)


def make_raiser(error: Exception) -> Callable[..., NoReturn]:
    def raise_error(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    return raise_error
