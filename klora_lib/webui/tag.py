"""The prompt's tag ``<klora:content:style:content_weight:style_weight:name=value:…>``: finding, reading and writing it.

WebUIs take it out of the prompt that they encode, as every ``<word:…>``, and leave it in the image's infotext.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import LONGEST_NAME, SettingsError, list_offenders, shorten
from ..infotext import format_value
from ..settings import DEFAULTS, FIELDS, Settings

NAME = "klora"
ATTEMPT = re.compile(r"<\s*/?\s*k[-_ ]?lora\b[^>]*>?", re.IGNORECASE)  # whatever looks as if it were to be our tag
WELL_FORMED = re.compile(r"<klora:([^<>]*)>", re.IGNORECASE)
ANY_TAG = re.compile(r"<\w+:[^>]+>|\\.", re.DOTALL)  # or a character that the prompt's own grammar does not count
ESCAPE = re.compile(r"%([0-7][0-9a-fA-F])")
BY_PLACE = ("content_weight", "style_weight")  # after the names
SAID = ("enabled", "content", "style")  # by the tag itself
EXAMPLE = "<klora:content:style:1:0.8:balance=0.2> is meant"


def find_tag(prompt: str) -> str | None:
    """The tag in ``prompt``, as it is written.  Raises SettingsError if there are two, or it is not a tag, or scheduled."""
    found = list(ATTEMPT.finditer(prompt))
    if not found:
        return None
    if len(found) > 1:
        raise refuse(f"there are {len(found)} K-LoRA tags ({list_offenders([m[0] for m in found])}) where one can act")
    text, at = found[0][0], found[0].start()
    if not text.endswith(">") or "<" in text[1:]:
        raise refuse(f"the tag {quote_tag(text)} is not closed by '>'; {EXAMPLE}")
    if not WELL_FORMED.fullmatch(text):
        raise refuse(f"the tag {quote_tag(text)} is not written as one; {EXAMPLE}")
    if is_scheduled(prompt, at):
        raise refuse(f"the tag {quote_tag(text)} is inside [ ], which schedules words over the steps, and not a K-LoRA tag")
    return text


def refuse(sentence: str) -> SettingsError:
    return SettingsError(sentence, "prompt")


def quote_tag(text: str) -> str:
    return shorten(" ".join(text.split()), LONGEST_NAME)


def is_scheduled(prompt: str, at: int) -> bool:
    """Whether position ``at`` is in a ``[from:to:when]`` or ``[one|other]`` of the WebUI's prompt grammar."""
    plain = ANY_TAG.sub(lambda m: "x" * len(m[0]), prompt)
    opened: list[tuple[str, int]] = []
    parted: list[bool] = []  # for each open bracket: whether a : or | is in it
    for i, char in enumerate(plain):
        if char in "[(":
            opened.append((char, i))
            parted.append(False)
        elif char in ":|" and opened:
            parted[-1] = True
        elif char in "])" and opened and opened[-1][0] == {"]": "[", ")": "("}[char]:
            (kind, start), parts = opened.pop(), parted.pop()
            if kind == "[" and parts and start < at < i:
                return True
    return False


def parse_tag(text: str) -> dict[str, Any]:
    """The raw values of a tag's settings by name.  Raises SettingsError for what no tag can say."""
    shown, (content, style, *rest) = quote_tag(text), [*text[1:-1].split(":")[1:], "", ""]
    rest = rest[:-2] if style else []
    if not content.strip() or not style.strip():
        role = "style" if content.strip() else "content"
        raise refuse(f"the tag {shown} names no {role} LoRA; {EXAMPLE}")
    given: dict[str, Any] = {"content": unescape(content), "style": unescape(style)}
    for i, item in enumerate(rest):
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            if i >= len(BY_PLACE):
                raise refuse(f"the tag {shown} has {item!r} after the two weights, where a name=value is meant")
            name, value = BY_PLACE[i], item
        if name in given or name in SAID:
            raise refuse(f"the tag {shown} gives {shorten(name, LONGEST_NAME)} twice")
        given[name] = unescape(value).strip()
    return {"enabled": True, **given}


def blame_tag(text: str, error: SettingsError) -> SettingsError:
    """The same refusal, which says that the value stands in a tag."""
    return refuse(f"in the tag {quote_tag(text)}, {error}")


def format_tag(settings: Settings) -> str:
    """The shortest tag that has ``settings``."""
    values = {f.name: getattr(settings, f.name) for f in FIELDS if f.name not in SAID}
    changed = {name: value for name, value in values.items() if value != DEFAULTS[name]}
    weights = [values[name] for name in BY_PLACE if any(each in changed for each in BY_PLACE)]
    named = [f"{name}={escape(format_value(value))}" for name, value in changed.items() if name not in BY_PLACE]
    names = [escape(settings.content), escape(settings.style)]
    return f"<{NAME}:{':'.join([*names, *map(format_value, weights), *named])}>"


def escape(text: str) -> str:
    """``text`` with %XX for each character that a tag cannot hold, and for a % that would be read as such."""
    text = re.sub(r"%(?=[0-7][0-9a-fA-F])", "%25", text)
    return re.sub(r"[:<>\x00-\x1f\x7f]", lambda m: f"%{ord(m[0]):02X}", text)


def unescape(text: str) -> str:
    return ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
