"""What we put in the place of a host's own function while a pass runs, with its inverse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """While open, ``owner.name`` is ``new``.

    An extension that wraps it meanwhile keeps its wrapper, and ours inside: ``new`` must then do no more than the original.
    """
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if vars(owner).get(name) is new:
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


@contextmanager
def inside(owner: Any, names: tuple[str, ...], context: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """While open, these functions of ``owner``, as far as it has them, run inside ``context(their arguments)``."""
    with ExitStack() as stack:
        for name in names:
            if hasattr(owner, name):
                stack.enter_context(replaced(owner, name, run_inside(getattr(owner, name), context)))
        yield


ORIGINAL = "klora_original"


def wrap_own(owner: Any, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Where ``owner`` itself, and not its class, has a function of that name: from now on it runs inside ``context()``."""
    own = vars(owner).get(name)
    if own is not None:
        wrapper = run_inside(own, lambda *_, **__: context())
        setattr(wrapper, ORIGINAL, own)
        setattr(owner, name, wrapper)


def unwrap_own(owner: Any, name: str) -> None:
    """The inverse, also on a copy of ``owner``."""
    own = vars(owner).get(name)
    if hasattr(own, ORIGINAL):
        setattr(owner, name, getattr(own, ORIGINAL))


def run_inside(function: Callable[..., Any], context: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def act(*args: Any, **kwargs: Any) -> Any:
        with context(*args, **kwargs):
            return function(*args, **kwargs)

    return act
