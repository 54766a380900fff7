"""What we hang on a pipeline while a block is open: its call, and its denoiser's; each with its inverse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from ..patching import replaced

MARK = "klora_acts"  # on what we hang on a denoiser
Act = Callable[[Mapping[str, Any]], None]
Around = Callable[[Mapping[str, Any]], AbstractContextManager[None]]


@contextmanager
def around_calls(pipe: Any, around: Around) -> Iterator[None]:
    """While open, every ``pipe(...)`` runs inside ``around(arguments by name)``.

    Python looks for ``__call__`` on the class: this one object gets a class of its own, of the same name.
    """
    own = type(pipe)

    @functools.wraps(own.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with around(name_arguments(own.__call__, self, args, kwargs)):
            return own.__call__(self, *args, **kwargs)

    names = {"__call__": call, "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    pipe.__class__ = type(own.__name__, (own,), names)
    try:
        yield
    finally:
        pipe.__class__ = own


@contextmanager
def count_steps(scheduler: Any) -> Iterator[list[None]]:
    """While open, the list grows by one with every step of ``scheduler``, whatever calls the denoiser."""
    steps: list[None] = []
    original = scheduler.step

    @functools.wraps(original)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        return original(*args, **kwargs)

    with replaced(scheduler, "step", step):
        yield steps


def is_occupied(module: nn.Module) -> bool:
    """Whether a block is open on this denoiser, by this pipeline or another."""
    hooks = [*module._forward_pre_hooks.values(), module._compiled_call_impl]
    return any(hasattr(hook, MARK) for hook in hooks)


@contextmanager
def before_forward(
    module: nn.Module, act: Callable[[Mapping[str, Any]], None], forward: Callable[..., Any]
) -> Iterator[None]:
    """While open, ``act(arguments by name)`` runs before every call of ``module``; ``forward`` knows the names.

    A module compiled in place (``module.compile()``) calls nothing but the compiled function, hooks included.
    """
    compiled = module._compiled_call_impl
    if compiled is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            act(name_arguments(forward, module, args, kwargs))

        setattr(hook, MARK, True)
        handle = module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        act(name_arguments(forward, module, args, kwargs))
        return compiled(*args, **kwargs)

    setattr(call, MARK, True)
    module._compiled_call_impl = call
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


def name_arguments(
    function: Callable[..., Any], owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A method's arguments with its defaults; those by keyword alone where they do not fit (the method itself will say)."""
    try:
        bound = inspect.signature(function).bind(owner, *args, **kwargs)
    except TypeError:
        return kwargs
    bound.apply_defaults()
    return bound.arguments
