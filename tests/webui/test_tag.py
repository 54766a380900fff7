"""Theorems of the prompt's tag: what is written is read; what cannot be read is refused in a sentence that shows the tag."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klora_lib.errors import SettingsError
from klora_lib.settings import read_settings
from klora_lib.webui.tag import escape, find_tag, format_tag, parse_tag, unescape

from ..fakes.host import parse_prompt
from .test_infotext import some_settings, written_out


@given(some_settings)
@example(read_settings({"enabled": True, "content": "a:b>c<d", "style": " 50%3A% ", "style_weight": 0.5}))
def test_what_is_written_is_read(settings) -> None:
    text = format_tag(settings)
    prompt = f"a cat {text} at night"
    assert find_tag(prompt) == text
    assert written_out(read_settings(parse_tag(text))) == written_out(settings)
    assert parse_prompt(prompt)[0] == "a cat  at night", "a host takes it out of the prompt"


@given(st.text())
def test_any_text_can_be_written(text: str) -> None:
    assert unescape(escape(text)) == text and not set(escape(text)) & set(":<>\n")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("<klora:cat:ink>", {}),
        ("<klora:cat:ink:0.8>", {"content_weight": 0.8}),
        ("<klora:cat:ink:1:0.8:method=est:balance=0.2>", {"style_weight": 0.8, "method": "est", "balance": 0.2}),
        ("<klora:cat:ink:style_weight=0.5: gamma = mean-ratio :hires=off>",
         {"style_weight": 0.5, "gamma": "mean-ratio", "hires": "off"}),
        ("<KLoRA: cat :a=b:scale=s*>", {"content": " cat ", "style": "a=b", "scale": "s*"}),
        ("<klora:a%3Ab:50% ink%25%3e>", {"content": "a:b", "style": "50% ink%>"}),
        ("<klora:50%off:ink>", {"content": "50%off"}),
    ],
)  # fmt: skip
def test_the_grammar(text: str, settings: dict) -> None:
    found = find_tag(f"a ({text}:1.2) [night]")
    assert found == text
    assert read_settings(parse_tag(text)) == read_settings({"enabled": True, "content": "cat", "style": "ink", **settings})


def test_the_shortest_tag() -> None:
    def written(**settings) -> str:
        return format_tag(read_settings({"enabled": True, "content": "cat", "style": "ink", **settings}))

    assert written() == "<klora:cat:ink>"
    assert written(style_weight=0.5) == "<klora:cat:ink:1.0:0.5>"
    assert written(balance=0.2, method="est") == "<klora:cat:ink:method=est:balance=0.2>"


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("<klora:a:b> <klora:c:d>", "there are 2 K-LoRA tags (<klora:a:b>; <klora:c:d>) where one can act"),
        ("<klora:a:b> and <KLORA:a:b>", "there are 2 K-LoRA tags (<klora:a:b>; <KLORA:a:b>) where one can act"),
        ("a <klora:a:b", "the tag <klora:a:b is not closed by '>'"),
        ("<klora:a:b <lora:c:1>", "the tag <klora:a:b <lora:c:1> is not closed by '>'"),
        ("<klora>", "the tag <klora> is not written as one"),
        ("< klora:a:b>", "the tag < klora:a:b> is not written as one"),
        ("<k-lora:a:b>", "the tag <k-lora:a:b> is not written as one"),
        ("<klora a:b>", "the tag <klora a:b> is not written as one"),
        ("[<klora:a:b>:<klora:c:d>:0.5]", "there are 2 K-LoRA tags"),
        ("[<klora:a:b>:0.5]", "the tag <klora:a:b> is inside [ ], which schedules words"),
        ("[cat|(dog <klora:a:b>:1.1)]", "the tag <klora:a:b> is inside [ ], which schedules words"),
        ("[[<klora:a:b>] cat:dog:5]", "the tag <klora:a:b> is inside [ ], which schedules words"),
    ],
)  # fmt: skip
def test_what_is_no_tag_or_cannot_act_is_refused(prompt: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        find_tag(prompt)
    assert str(refused.value).startswith(f"prompt: {sentence}")


@pytest.mark.parametrize(
    "prompt",
    ["[<klora:a:b>]", "([a:b:2]<klora:a:b>:1.2)", "[<klora:a:b> unclosed: 1", r"\[<klora:a:b>:2\]", "[a] <klora:a:b> [b:2]",
     "[<lora:x:1> <klora:a:b>]", "a cat (<klora:a:b>:1.1) AND a dog :0.5"],
)  # fmt: skip
def test_brackets_that_schedule_nothing_are_the_prompts_own(prompt: str) -> None:
    assert find_tag(prompt) == "<klora:a:b>"


@pytest.mark.parametrize("prompt", ["a cat", "<lora:klora:1>", "klora <lora:a:1>", "<klorax:a:b>", "k-lora > all"])
def test_other_prompts_have_none(prompt: str) -> None:
    assert find_tag(prompt) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<klora:cat>", "the tag <klora:cat> names no style LoRA; <klora:content:style:1:0.8:balance=0.2> is meant"),
        ("<klora::ink>", "the tag <klora::ink> names no content LoRA"),
        ("<klora:>", "the tag <klora:> names no content LoRA"),
        ("<klora:a:b:1:1:1>", "the tag <klora:a:b:1:1:1> has '1' after the two weights, where a name=value is meant"),
        ("<klora:a:b:balance=1:balance=2>", "the tag <klora:a:b:balance=1:balance=2> gives balance twice"),
        ("<klora:a:b:1:content_weight=1>", "the tag <klora:a:b:1:content_weight=1> gives content_weight twice"),
        ("<klora:a:b:style=c>", "the tag <klora:a:b:style=c> gives style twice"),
        ("<klora:a:b:enabled=no>", "the tag <klora:a:b:enabled=no> gives enabled twice"),
    ],
)  # fmt: skip
def test_what_no_tag_can_say_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_tag(text)
    assert str(refused.value).startswith(f"prompt: {sentence}")
