"""What the commands' options have in common: how errors are reported, and how values are read."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import KLoraError, SettingsError
from ..settings import BY_NAME, Settings, quote_value, read_settings


class Parser(argparse.ArgumentParser):
    """argparse, but its errors are SettingsErrors, which are reported in one line."""

    def error(self, message: str) -> Any:
        raise SettingsError(message)


def run_command(act: Callable[[], None]) -> int:
    """Run ``act``.  Returns the exit status; if it is not 0, one line on stderr says why.

    Nobody is told of a pipe whose reader has enough, as of ``klora plan … | head -1``.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # cp1252, for one, has no γ; stderr writes its number on its own
    try:
        try:
            act()
        finally:
            print(end="", flush=True)  # what it printed, so that an error in this is heard of here
    except KLoraError as e:
        print(f"klora: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("klora: stopped", file=sys.stderr)
        return 130
    except OSError as e:
        if e.filename is not None:  # not of a print
            raise
        drop_output()
        if isinstance(e, BrokenPipeError):
            return 141  # as a shell has it of a program that such a pipe ends
        print(f"klora: the text cannot be written: {e.strerror}", file=sys.stderr)
        return 2
    return 0


def drop_output() -> None:
    """What is still to be written to stdout goes nowhere: else Python tries again at its end, and tells of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def add_settings(command: argparse.ArgumentParser, names: Iterable[str]) -> None:
    for name in names:
        field = BY_NAME[name]
        default = "" if field.default is None else f"; default: {field.default}"
        text = f"{field.help} ({field.accepts}{default})"
        command.add_argument(f"--{name.replace('_', '-')}", dest=name, help=text.replace("%", "%%"))


def read_given_settings(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of those settings among ``names`` that were given.  Raises SettingsError with all invalid ones."""
    raw = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings: Settings = read_settings(raw)
    return {name: getattr(settings, name) for name in raw}


def read_whole_number(text: Any, name: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except (TypeError, ValueError, OverflowError):  # None is an empty field of the demo page
        number = least - 1
    if not least <= number <= most or (isinstance(text, float) and text != number):
        raise SettingsError(f"must be a whole number from {least} to {most}, not {quote_value(text)}", name)
    return number


def read_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) from a text like `768x512`; None for None."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text)
    width, height = (int(n) for n in found.groups()) if found else (0, 0)
    if not all(8 <= n <= 16384 and n % 8 == 0 for n in (width, height)):
        raise SettingsError(f"must be WIDTHxHEIGHT, multiples of 8 from 8 to 16384, not {quote_value(text)}", "size")
    return width, height


def read_number(text: str | None, name: str, low: float, high: float) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise SettingsError(f"must be a number from {low:g} to {high:g}, not {quote_value(text)}", name)
    return number
