"""Wrappers for the calls of a pipeline, its scheduler and its denoiser while a block is open; each with its inverse."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from ..patching import replace_attribute

MARK = "klora_acts"  # an attribute of the hooks that we set on a denoiser
Act = Callable[[Mapping[str, Any]], None]
Around = Callable[[Mapping[str, Any]], AbstractContextManager[None]]


@contextmanager
def wrap_calls(pipe: Any, around: Around) -> Iterator[None]:
    """While open, every ``pipe(...)`` runs inside ``around(arguments by name)``.

    Python looks for ``__call__`` in the class, so this one object gets a new class with the same name.
    """
    cls = type(pipe)

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with around(name_arguments(cls.__call__, self, args, kwargs)):
            return cls.__call__(self, *args, **kwargs)

    names = {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    pipe.__class__ = type(cls.__name__, (cls,), names)
    try:
        yield
    finally:
        pipe.__class__ = cls


@contextmanager
def count_steps(scheduler: Any) -> Iterator[list[None]]:
    """While open, the list gets one more element with every step of ``scheduler``."""
    steps: list[None] = []
    original = scheduler.step

    @functools.wraps(original)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        return original(*args, **kwargs)

    with replace_attribute(scheduler, "step", step):
        yield steps


def is_occupied(module: nn.Module) -> bool:
    """Whether a klora block is open on this denoiser, of this pipeline or of another one."""
    hooks = [*module._forward_pre_hooks.values(), module._compiled_call_impl]
    return any(hasattr(hook, MARK) for hook in hooks)


@contextmanager
def run_before_forward(
    module: nn.Module, act: Callable[[Mapping[str, Any]], None], forward: Callable[..., Any]
) -> Iterator[None]:
    """While open, ``act(arguments by name)`` runs before every call of ``module``; ``forward`` has the argument names.

    A module compiled in place (``module.compile()``) does not run its hooks: then its compiled function is wrapped.
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
    """A method's arguments by name, with its defaults.

    Only those given by keyword if the arguments do not fit: the method itself then raises the error.
    """
    try:
        bound = inspect.signature(function).bind(owner, *args, **kwargs)
    except TypeError:
        return kwargs
    bound.apply_defaults()
    return bound.arguments
