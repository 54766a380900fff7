"""What each batch of a job is to be drawn with: the panel's settings, or those of a tag in the batch's prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import infotext
from ..errors import SettingsError
from ..settings import BY_NAME, Settings, name_arguments, read_settings
from . import xyz
from .tag import NAME, blame_tag, find_tag, format_tag, parse_tag, quote_tag, refuse

OFF = Settings()
HIRES_ONLY = ("hires", "hires_balance")
SAME_CHECKPOINT = (None, "", "Use same checkpoint")


@dataclass(frozen=True)
class Wish:
    """One batch.  None for the settings of a pass: it has nothing of a pair."""

    first: Settings | None
    hires: Settings | None
    tags: tuple[str | None, str | None] = (None, None)  # as the prompt and the hires prompt have them
    panel: bool = False  # whether the panel is switched on

    @property
    def has_own_hires_tag(self) -> bool:
        return self.tags[1] not in (None, self.tags[0])

    @property
    def keeps_pair(self) -> bool:
        """Whether the hires pass has the same pair with the same weights as the first."""
        first, hires = self.first, self.hires
        if first is None or hires is None:
            return first is hires
        return (first.content, first.style, first.weights) == (hires.content, hires.style, hires.weights)

    def write_infotext(self, p: Any) -> None:
        instead = "used instead of the panel" if self.panel else "used"
        facts = {infotext.TAG: instead} if self.tags[0] else {}
        if self.has_own_hires_tag:
            facts[infotext.HIRES_TAG] = instead
        if facts and self.panel:
            p.comment("K-LoRA: the tag in the prompt was used instead of the panel")
        infotext.stamp(p, self.first or OFF, facts)


def read_wishes(p: Any, args: Sequence[Any]) -> list[Wish]:
    """One for each batch.  Raises SettingsError.

    A plot's axes change the settings of a tag too, and the tag in the prompt with them, so that the image tells of it.
    """
    panel = read_panel(p, args)
    is_on = BY_NAME["enabled"].read(name_arguments(args).get("enabled") or False)
    return [read_wish(p, panel, is_on, batch) for batch in list_batches(p)]


def read_panel(p: Any, args: Sequence[Any]) -> Settings:
    """The settings from the script's arguments and a plot's axes.  Raises SettingsError.

    Settings given by name (API) are always validated.  Values of a disabled panel are not validated.
    """
    by_name = bool(args) and isinstance(args[0], Mapping)
    given = xyz.apply_axes(name_arguments(args), p)
    if not by_name and not given.get("enabled"):
        return OFF
    return read_settings(given)


def list_batches(p: Any) -> Iterator[range]:
    """The places of each batch's prompts among the job's."""
    for start in range(0, len(p.all_prompts), p.batch_size):
        yield range(start, min(start + p.batch_size, len(p.all_prompts)))


def read_wish(p: Any, panel: Settings, is_on: bool, batch: range) -> Wish:
    has_hires = bool(getattr(p, "enable_hr", False) and getattr(p, "all_hr_prompts", None))
    written = find_common_tag(p.all_prompts, batch)
    hires_written = find_common_tag(p.all_hr_prompts, batch) if has_hires else None
    if (written or hires_written) and getattr(p, "disable_extra_networks", False):
        shown = quote_tag(written or hires_written or "")
        raise refuse(f"the tag {shown} cannot act: extra networks are disabled in this job")
    settings, tag = read_tag(p, written, panel)
    hires, hires_tag = (settings.for_hires, tag) if hires_written == written else read_hires_tag(p, hires_written, settings)
    if tag != written:
        replace_tag(p, p.all_prompts, batch, written, tag)
    if has_hires and hires_tag != hires_written:
        replace_tag(p, p.all_hr_prompts, batch, hires_written, hires_tag)
    return Wish(settings if settings.enabled else None, hires, (tag, hires_tag if has_hires else None), is_on)


def read_tag(p: Any, written: str | None, otherwise: Settings, for_hires: bool = False) -> tuple[Settings, str | None]:
    """The settings of a tag, or ``otherwise`` if there is none; and the tag that says them."""
    if written is None:
        return otherwise, None
    try:
        settings = read_settings(xyz.apply_axes(parse_tag(written), p))
    except SettingsError as e:
        raise e if e.field == "prompt" else blame_tag(written, e) from None
    if not xyz.read_axes(p):
        return settings, written
    settings = replace(settings, hires="same", hires_balance=0.0) if for_hires else settings
    return settings, format_tag(settings) if settings.enabled else None


def read_hires_tag(p: Any, written: str | None, first: Settings) -> tuple[Settings | None, str | None]:
    """The same for the hires pass, whose own prompt has another tag than the prompt, or none."""
    if written is None:
        return first.for_hires, None
    if stray := [name for name in parse_tag(written) if name in HIRES_ONLY]:
        raise refuse(f"the tag {quote_tag(written)} of the hires prompt has {stray[0]}, which belongs into the prompt's tag")
    settings, tag = read_tag(p, written, first, for_hires=True)
    return (settings if settings.enabled else None), tag


def find_common_tag(prompts: Sequence[str], batch: range) -> str | None:
    """The tag of the prompts of one batch, which are drawn at once.  Raises SettingsError if they have different ones."""
    first = find_tag(prompts[batch[0]])
    for i in batch[1:]:
        if prompts[i] != prompts[batch[0]] and (other := find_tag(prompts[i])) != first:
            told = " and ".join(quote_tag(tag) if tag else "none" for tag in (first, other))
            raise refuse(f"the prompts of one batch have different K-LoRA tags, {told}; draw them with batch size 1")
    return first


def replace_tag(p: Any, prompts: list[str], batch: range, old: str | None, new: str | None) -> None:
    """In the prompts of the batch, and in the one that the infotext of a grid has."""
    if old is None:
        return
    main = getattr(p, "main_prompt", None)
    if batch[0] == 0 and main is not None and main == prompts[0]:
        p.main_prompt = main.replace(old, new or "")
    for i in batch:
        prompts[i] = prompts[i].replace(old, new or "")


def take_tag(network_data: Any) -> str | None:
    """Remove our tag from a prompt's network data: what it says of the denoiser is no reason to encode the prompt again."""
    found = None
    for kind in [kind for kind in network_data if kind.lower() == NAME]:
        for params in network_data.pop(kind):
            found = f"<{kind}:{':'.join(params.items)}>"
    return found


def refuse_late_tag(found: str | None, read: str | None) -> None:
    """Raise SettingsError if a prompt's tag is not the one that was ``read`` before the job began."""
    if found is not None and found != read:
        raise refuse(f"the tag {quote_tag(found)} came into the prompt after the job had begun, where it cannot act")
