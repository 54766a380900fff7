"""What a long computation calls between its parts, so that its progress can be told and it can be ended."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[], None]  # called before each unit of a long computation; what it raises ends that


def ignore() -> None:
    """The Watch of those who wait for the end."""
