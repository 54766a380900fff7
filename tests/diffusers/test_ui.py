"""The page: what a person draws there is what ``klora`` draws, and a refusal is a sentence on the page."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch

from klora_lib.cli.ui import Studio, page
from klora_lib.errors import KLoraError
from klora_lib.hosts.diffusers import klora
from klora_lib.settings import BY_NAME, FIELDS, Settings

from .pipes import FAMILIES

ROLES = {"subject": "content", "painter": "style"}
CALL = {"num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture
def toy(files: Callable) -> Any:
    """The toy world's face, with a random model behind it."""
    pair = dict(zip(ROLES, files("sd15")))

    def pipeline() -> Any:
        pipe = FAMILIES["sd15"]()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return SimpleNamespace(
        pipeline=pipeline,
        lora=pair.__getitem__,
        loras=lambda: ROLES,
        prompt=lambda content, style: f"{content} {style}",
        STEPS=2,
        GUIDANCE=1.5,
    )


def values(**given: Any) -> list[Any]:
    """The panel's values, in its order."""
    return list((vars(Settings()) | {"beta": 0.5} | given).values())


def noise(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def equal(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_draws_what_klora_draws(toy: Any) -> None:
    studio = Studio(toy)
    chosen = {"enabled": True, "content": "subject", "style": "painter", "alpha": 2.0, "show_map": True}
    *images, drawn_map = studio.draw("a dog", 3.0, 2.0, *values(**chosen))[0]
    pipe = toy.pipeline()
    with klora(pipe, toy.lora("subject"), toy.lora("painter"), alpha=2) as run:
        ours = pipe("a dog", num_images_per_prompt=2, generator=noise(3, 4), **CALL).images
    assert len(images) == len(ours) == 2 and all(map(equal, images, ours))
    assert drawn_map.size != images[0].size
    assert not equal(images[0], images[1])
    assert studio.draw("a dog", 3, 1, *values(**chosen))[1] == run.infotext()


def test_off_is_the_plain_model(toy: Any) -> None:
    images, text = Studio(toy).draw("a dog", 3, 1, *values(content="subject", style="painter"))
    plain = toy.pipeline()("a dog", generator=noise(3), **CALL).images
    assert text == ""
    assert len(images) == 1 and equal(images[0], plain[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"style": "painter"}, "content: no LoRA is chosen"),
        ({"content": "subject"}, "style: no LoRA is chosen"),
        ({"content": "subject", "style": "subject"}, "style: must be another LoRA than content"),
        ({"content": "subject", "style": "painter", "gamma": "x"}, "gamma: must be auto, mean-ratio or a number above 0"),
    ],
    ids=str,
)
def test_refusals(toy: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(KLoraError, match=said):
        Studio(toy).draw("a dog", 3, 1, *values(enabled=True, **given))


def test_the_page_opens_with_a_pair_chosen(toy: Any) -> None:
    blocks = page(Studio(toy))
    shown = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    for name, value in (("content", "subject"), ("style", "painter"), ("enabled", True)):
        found = shown[f"script_txt2img_klora_{name}" + ("-checkbox" if name == "enabled" else "")]
        assert found.value == value
    assert len(FIELDS) == len(BY_NAME) <= len(shown)
    (draw,) = (each for each in blocks.fns.values() if each.api_name == "draw")
    with pytest.raises(gr.Error, match="K-LoRA: content: no LoRA is chosen"):
        draw.fn("a dog", 3, 1, *values(enabled=True))
