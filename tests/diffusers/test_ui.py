"""The page: what a person draws there is what ``klora`` draws, and a refusal is a sentence on the page."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch

import klora_lib
from klora_lib.cli import ui
from klora_lib.cli.main import main
from klora_lib.cli.ui import ToyStudio, build_page
from klora_lib.diffusers import klora
from klora_lib.errors import HostError, KLoraError
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
        load_pipeline=pipeline,
        find_lora=lambda name, role=None: pair[name],
        list_loras=lambda: ROLES,
        write_prompt=lambda content: f"a {content}",
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
    studio = ToyStudio(toy)
    chosen = {"enabled": True, "content": "subject", "style": "painter", "alpha": 2.0, "show_map": True}
    *images, drawn_map = studio.draw_images("a dog", 3.0, 2.0, *values(**chosen))[0]
    pipe = toy.load_pipeline()
    with klora(pipe, toy.find_lora("subject"), toy.find_lora("painter"), alpha=2) as run:
        ours = pipe("a dog", num_images_per_prompt=2, generator=noise(3, 4), **CALL).images
    assert len(images) == len(ours) == 2 and all(map(equal, images, ours))
    assert drawn_map.size != images[0].size
    assert not equal(images[0], images[1])
    assert studio.draw_images("a dog", 3, 1, *values(**chosen))[1] == run.infotext()


def test_off_is_the_plain_model(toy: Any) -> None:
    images, text = ToyStudio(toy).draw_images("a dog", 3, 1, *values(content="subject", style="painter"))
    plain = toy.load_pipeline()("a dog", generator=noise(3), **CALL).images
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
        ToyStudio(toy).draw_images("a dog", 3, 1, *values(enabled=True, **given))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", None, "seed: must be a whole number from 0 to 9223372036854775791, not None"),
        ("seed", float("inf"), "seed: must be a whole number from 0 to 9223372036854775791, not inf"),
        ("count", None, "images: must be a whole number from 1 to 16, not None"),
        ("count", float("nan"), "images: must be a whole number from 1 to 16, not nan"),
        ("count", 2.5, "images: must be a whole number from 1 to 16, not 2.5"),
    ],
)
def test_a_field_that_holds_no_whole_number(toy: Any, field: str, value: float | None, said: str) -> None:
    """None is what a page sends for an empty one."""
    given: dict[str, Any] = {"seed": 3, "count": 1, field: value}
    blocks = build_page(ToyStudio(toy))
    (draw,) = (each for each in blocks.fns.values() if each.api_name == "draw")
    with pytest.raises(gr.Error, match=f"^'K-LoRA: {said}'$"):
        draw.fn("a dog", given["seed"], given["count"], *values(content="subject", style="painter"))


def test_the_page_opens_with_a_pair_chosen(toy: Any) -> None:
    blocks = build_page(ToyStudio(toy))
    shown = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    for name, value in (("content", "subject"), ("style", "painter"), ("enabled", True)):
        found = shown[f"script_txt2img_klora_{name}" + ("-checkbox" if name == "enabled" else "")]
        assert found.value == value
    assert len(FIELDS) == len(BY_NAME) <= len(shown)
    (draw,) = (each for each in blocks.fns.values() if each.api_name == "draw")
    with pytest.raises(gr.Error, match="K-LoRA: content: no LoRA is chosen"):
        draw.fn("a dog", 3, 1, *values(enabled=True))


def test_whatever_the_pipeline_raises_is_a_sentence(toy: Any) -> None:
    studio = ToyStudio(toy)

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("two\nlines")

    studio.pipe.check_inputs = fail
    for enabled in (True, False):
        with pytest.raises(HostError, match="^the StableDiffusionPipeline cannot draw this: two$"):
            studio.draw_images("a dog", 3, 1, *values(enabled=enabled, content="subject", style="painter"))


# --- the command ---


@pytest.fixture
def told(toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """The one line of ``ui``, and that it ends with 2."""
    monkeypatch.setattr(klora_lib, "toy", toy, raising=False)
    monkeypatch.setattr(gr.Blocks, "launch", lambda *_, **__: pytest.fail("it is served"))

    def ask(port: int | str = 0) -> str:
        if not port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return ask


def test_a_port_that_is_taken(told: Callable) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert told(port) == f"klora: port: {port} is taken by another program"


def test_a_port_that_may_not_be_used(told: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ui.socket, "socket", Closed)
    assert told(80) == "klora: port: 80 cannot be served on: Permission denied"


@pytest.mark.parametrize("error", [ValueError("localhost is not\naccessible"), OSError("localhost is not\naccessible")])
def test_a_page_that_cannot_be_served(told: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(gr.Blocks, "launch", fail)
    assert told() == "klora: the page cannot be served: localhost is not"


def test_without_the_repository(told: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "REPOSITORY", tmp_path)
    assert told().endswith("do not come with the package: run ui from the repository")


@pytest.mark.parametrize(("module", "extra"), [("gradio", "ui"), ("transformers", "diffusers")])
def test_what_is_not_installed(told: Callable, monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    """Is called by its name."""
    monkeypatch.setitem(sys.modules, module, None)
    assert told().endswith(f"pip install '.[{extra}]', in the project's folder")


def test_a_gradio_that_leaves_out_our_scripts(told: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """gradio 3's Blocks takes any keyword, and does nothing with `head`."""

    class Blocks:
        def __init__(self, theme: Any = None, css: str | None = None, **kwargs: Any):
            pass

    monkeypatch.setattr(gr, "Blocks", Blocks)
    monkeypatch.setattr(gr, "__version__", "3.41.2")
    assert told().startswith("klora: gradio 3.41.2 leaves the page without its scripts: pip install '.[ui]'")
