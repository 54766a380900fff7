"""Every refusal of K-LoRA: one tree, each a sentence with the facts in it."""

from __future__ import annotations


class KLoraError(Exception):
    """A refusal, as one sentence a user can act on.

    ``field`` names the setting to blame (``"alpha"``, ``"content"``, …) where there is one; it then opens the sentence.
    """

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message, field)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def about(self, field: str) -> KLoraError:
        """The same refusal, now naming the setting that brought it."""
        return type(self)(self.message, field)


class SettingsError(KLoraError):
    """A setting that is unknown, of the wrong type or out of range."""


class LoraFileError(KLoraError):
    """A LoRA file that cannot be read or holds nothing that K-LoRA can use."""


class PairError(KLoraError):
    """Two readable LoRAs that do not make a pair, or a pair that the loaded model does not fit."""


class HostError(KLoraError):
    """The WebUI lacks something K-LoRA needs, or changed underneath it."""


def all_offenders(errors: list[KLoraError]) -> KLoraError:
    """One error that says what each of ``errors`` says (of the first one's kind); ``errors`` must not be empty."""
    if len(errors) == 1:
        return errors[0]
    return type(errors[0])("; ".join(str(e) for e in errors))


def first_line(error: BaseException) -> str:
    """What another program's error says, short enough for a sentence of ours; its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


SHOWN = 3  # offenders named in a sentence


def listed(offenders: list[str]) -> str:
    """The first few offenders, and how many more."""
    more = len(offenders) - SHOWN
    return "; ".join(offenders[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
