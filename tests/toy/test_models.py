"""Theorems: the tokenizer knows each word, and the networks are those of Stable Diffusion."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from klora_lib.lora.keys import is_attention
from klora_lib.toy import models


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("toy") / "tokenizer"
    models.write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_each_word_is_one_token_and_an_unknown_one_is_spelt(tokenizer: CLIPTokenizer) -> None:
    for word in models.WORDS:
        assert tokenizer.tokenize(word) == [word + "</w>"]
    assert len(tokenizer.tokenize("zeppelin")) > 1
    assert tokenizer.decode(tokenizer("a zeppelin").input_ids, skip_special_tokens=True).strip() == "a zeppelin"


def test_a_caption_fits(tokenizer: CLIPTokenizer) -> None:
    caption = "a purple strawberry on a cream background, emojione style"
    ids = tokenizer(caption, padding="max_length").input_ids
    assert len(ids) == models.LENGTH == tokenizer.model_max_length
    assert ids.count(tokenizer.eos_token_id) == models.LENGTH - 11
    assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2


def test_the_unet_has_the_layers_that_loras_touch() -> None:
    layers = [name for name, module in models.make_unet().named_modules() if hasattr(module, "weight")]
    attention = [name for name in layers if is_attention(name)]
    assert len(attention) == 56
    assert {name.rpartition(".transformer_blocks.")[0].partition(".")[0] for name in attention} == {
        "down_blocks",
        "mid_block",
        "up_blocks",
    }
    for last in ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"):
        assert any(name.endswith(last) for name in layers)
