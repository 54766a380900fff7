"""All errors of K-LoRA: one class tree.  Each error is one sentence with the facts."""

from __future__ import annotations

LONGEST = 4000  # characters of a text about one request, however much is wrong with it
MAX_LISTED = 3  # how many offenders a sentence names
LONGEST_OFFENDER, LONGEST_NAME = 400, 200  # characters of one of them, and of a name in it


class KLoraError(Exception):
    """A refusal, in one sentence that helps the user.

    ``field``: the setting that causes it (``"alpha"``, ``"content"``, …), if there is one; the text then begins with it.
    """

    def __init__(self, message: str, field: str | None = None):
        message = shorten(message, LONGEST)
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def blame(self, field: str) -> KLoraError:
        """The same error, with the setting that causes it."""
        return type(self)(self.message, field)


class SettingsError(KLoraError):
    """A setting that is unknown, of the wrong type or out of range."""


class LoraFileError(KLoraError):
    """A LoRA file that cannot be read, or that contains nothing that K-LoRA can use."""


class PairError(KLoraError):
    """Two LoRAs that can be read but do not form a pair, or a pair that does not fit the loaded model."""


class HostError(KLoraError):
    """The WebUI or pipeline lacks something that K-LoRA needs, or was changed during a pass."""


class LoadError(HostError):
    """A module of ours cannot be imported when it is first needed."""


def join_errors(errors: list[KLoraError]) -> KLoraError:
    """One error with the texts of all ``errors``, of the first one's type; ``errors`` must not be empty."""
    if len(errors) == 1:
        return errors[0]
    return type(errors[0])("; ".join(str(e) for e in errors))


def quote_first_line(error: BaseException) -> str:
    """The first line of another program's error, at most 200 characters; its type if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def list_offenders(offenders: list[str]) -> str:
    """The first offenders, each at most ``LONGEST_OFFENDER`` characters long, and how many more there are."""
    more = len(offenders) - MAX_LISTED
    listed = (shorten(each, LONGEST_OFFENDER) for each in offenders[:MAX_LISTED])
    return "; ".join(listed) + (f"; and {more} more" if more > 0 else "")


def shorten(text: str, most: int) -> str:
    """``text``, or its beginning and three dots: at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def format_count(n: int, noun: str) -> str:
    """``1 layer``, ``2 layers``"""
    return f"{n} {noun}{'' if n == 1 else 's'}"
