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


def run_before_init(p: Any, act: Callable[[], None]) -> None:
    """Call ``act`` once, after the hooks ``process`` of all scripts; what it raises ends the job.

    Another script's hook, after ours, may still write the prompts (wildcards do).  A host calls ``p.init`` next.
    """
    forget_init(p)
    own, original = vars(p).get("init"), p.init

    def init(*args: Any, **kwargs: Any) -> Any:
        if vars(p).get("init") is init:
            forget_init(p)
            act()
        return original(*args, **kwargs)

    init.klora_own = (own,)  # type: ignore[attr-defined]
    p.init = init


def forget_init(p: Any) -> None:
    """The inverse of ``run_before_init``; it works on a copy of ``p`` too."""
    (own,) = getattr(vars(p).get("init"), "klora_own", (vars(p).get("init"),))
    if own is None:
        vars(p).pop("init", None)
    else:
        p.init = own


def refuse_late(p: Any, error: Exception) -> None:
    """End the job of ``p`` with ``error`` while its networks are activated, for the first pass or for the hires pass."""
    if getattr(p, "is_hr_pass", False):
        refuse_sampling(p, error)
    else:
        p.sample = make_raiser(error)


def refuse_sampling(p: Any, error: Exception) -> None:
    """End the job of ``p`` with ``error`` when the next sampling pass begins."""
    p.sampler.sample = p.sampler.sample_img2img = make_raiser(error)


def make_raiser(error: Exception) -> Callable[..., NoReturn]:
    def raise_error(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    return raise_error
