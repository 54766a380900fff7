"""The panel's small pieces of HTML.  All texts from files and users are escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from ..errors import shorten
from ..late import Late

if TYPE_CHECKING:
    from ..lora import facts as lora_facts
    from ..lora.facts import Facts
else:
    lora_facts = Late("klora_lib.lora.facts")

LONGEST_CHIP = 40  # characters that a chip shows


def write_facts(facts: Facts, words: Iterable[str], preview: str) -> str:
    """A preview, a line of facts, and a button for each trigger word.  ``preview``: an address, or empty."""
    line = [escape(text) for text in (facts.base, facts.kind) if text]
    if facts.ranks:
        least, most = (escape(str(rank)) for rank in facts.ranks)
        line.append(f"<b>rank</b> {least}" if least == most else f"<b>ranks</b> {least}–{most}")
    line.append(f"{facts.layers} <b>layers</b>")
    line += [escape(facts.trainer)] if facts.trainer else []
    told = "".join(f"<span>{each}</span>" for each in line)
    usable = list(dict.fromkeys(filter(lora_facts.is_usable, [*words, *facts.words])))[: lora_facts.MOST_WORDS]
    chips = "".join(
        f'<button type="button" class="klora-chip" data-word="{escape(word)}" title="Add to the prompt">'
        f"{escape(shorten(word, LONGEST_CHIP))}</button>"
        for word in usable
    )
    image = f'<img class="klora-preview" src="{escape(preview)}" alt="" loading="lazy">' if preview else ""
    return (
        f'<div class="klora-facts">{image}<div><div class="klora-line">{told}</div>'
        f'<div class="klora-chips">{chips}</div></div></div>'
    )


def mark_answer(html: str, *names: str, model: str | None = None) -> str:
    """``html`` with the names that it is about: javascript/klora.js asks again where another answer came in too late.

    ``model``: the checkpoint that it is about; empty if none was loaded, None if the answer has nothing to do with one.
    """
    about = "" if model is None else f' data-model="{escape(model)}"'
    return f'<div class="klora-answer" data-for="{escape(chr(10).join(names))}"{about}>{html}</div>'


def write_trouble(sentence: str) -> str:
    return f'<div class="klora-trouble" role="status">{escape(sentence)}</div>'


def write_note(verb: str, what: str) -> str:
    return f'<div class="klora-note" role="status"><b>{escape(verb)}</b> {escape(what)}</div>'
