"""Replacing and wrapping functions of a host, each with its inverse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


@contextmanager
def replace_attribute(owner: Any, name: str, new: Any) -> Iterator[None]:
    """While open, ``owner.name`` is ``new``.

    If another extension wraps ``new`` while this is open, its wrapper stays, and calls ``new`` also after the end: then
    ``new`` must do the same as the original.
    """
    of_instance, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if vars(owner).get(name) is new:
            if of_instance:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


@contextmanager
def wrap_functions(
    owner: Any, names: tuple[str, ...], context: Callable[..., AbstractContextManager[None]]
) -> Iterator[None]:
    """While open, these functions of ``owner`` run inside ``context(their arguments)``.  Missing ones are skipped."""
    with ExitStack() as stack:
        for name in names:
            if hasattr(owner, name):
                stack.enter_context(replace_attribute(owner, name, wrap_function(getattr(owner, name), context)))
        yield


ORIGINAL = "klora_original"


def wrap_instance_function(owner: Any, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    """If ``owner`` itself (not its class) has a function of this name, let it always run inside ``context()``."""
    function = vars(owner).get(name)
    if function is not None:
        wrapper = wrap_function(function, lambda *_, **__: context())
        setattr(wrapper, ORIGINAL, function)
        setattr(owner, name, wrapper)


def unwrap_instance_function(owner: Any, name: str) -> None:
    """The inverse of ``wrap_instance_function``; it works on a copy of ``owner`` too."""
    function = vars(owner).get(name)
    if hasattr(function, ORIGINAL):
        setattr(owner, name, getattr(function, ORIGINAL))


def wrap_function(function: Callable[..., Any], context: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
    """``function``, which then runs inside ``context(its arguments)``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with context(*args, **kwargs):
            return function(*args, **kwargs)

    return wrapper
