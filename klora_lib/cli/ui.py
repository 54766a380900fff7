"""``ui``: a web page with the same panel as in a WebUI, which draws with the toy model on this machine."""

from __future__ import annotations

import argparse
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..diffusers import klora
from ..drawing import pipelines
from ..drawing.draw import draw_images
from ..errors import KLoraError, SettingsError, quote_first_line
from ..map import draw_plan
from ..rule.cache import Library
from ..settings import BY_NAME, name_arguments, read_settings
from .options import read_whole_number

REPOSITORY = Path(__file__).parents[2]
LOCALHOST = "127.0.0.1"
MAX_IMAGES = 16  # at once
# javascript/klora.js calls these two functions, which a WebUI's page has
SHIM = "gradioApp = () => document; onAfterUiUpdate = (act) => setInterval(act, 300);"


def add_commands(commands: Any) -> None:
    command = commands.add_parser("ui", help="serve a page with the WebUI's panel and the toy model")
    command.set_defaults(run=run_ui)
    command.add_argument("--port", default="7860", help="port, open to this machine only (default: %(default)s)")


def run_ui(args: argparse.Namespace) -> None:
    port = read_whole_number(args.port, "port", 1, 65535)
    try:
        import gradio  # noqa: F401  if it is missing, say so before a model is loaded
    except ImportError as e:
        raise KLoraError(f"the page needs gradio ({e}): pip install 'klora-webui[ui]'") from None
    check_port(port)
    read_assets()
    made = build_page(ToyStudio(pipelines.import_toy()))
    try:
        made.launch(server_name=LOCALHOST, server_port=port, show_api=False)
    except (OSError, ValueError) as e:
        raise KLoraError(f"the page cannot be served: {quote_first_line(e)}") from None


def check_port(port: int) -> None:
    """Raise SettingsError if the page cannot be served on ``port``; gradio does not say why."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gradio does
            probe.bind((LOCALHOST, port))
    except OSError as e:
        why = "is taken by another program" if e.errno == errno.EADDRINUSE else f"cannot be served on: {e.strerror}"
        raise SettingsError(f"{port} {why}", "port") from None


def read_assets() -> list[str]:
    """The texts of the panel's script and style sheet.  Raises KLoraError if they are not there."""
    try:
        return [(REPOSITORY / name).read_text(encoding="utf-8") for name in ("javascript/klora.js", "style.css")]
    except OSError:
        raise KLoraError("the page's script and style do not come with the package: run ui from the repository") from None


class ToyStudio:
    """The toy model, with the functions that the page calls."""

    def __init__(self, toy: Any):
        self.toy = toy
        with pipelines.silence_libraries():
            self.pipe = toy.load_pipeline()
        self.library = Library()

    def list_loras(self) -> list[str]:
        return list(self.toy.list_loras())

    def draw_images(self, prompt: str, seed: float, count: float, *values: Any) -> tuple[list[Any], str]:
        """The images, after them the map if it is wanted; and the infotext, as a WebUI writes it.

        Args: values: the panel's, in the order of FIELDS.  Raises KLoraError.
        """
        settings = read_settings(name_arguments(values))
        first = read_whole_number(seed, "seed", 0, 2**63 - 1 - MAX_IMAGES)
        number = read_whole_number(count, "images", 1, MAX_IMAGES)
        if settings.enabled and not (settings.content and settings.style):
            raise SettingsError("no LoRA is chosen", "style" if settings.content else "content")
        paths = [self.toy.find_lora(name) for name in (settings.content, settings.style)] if settings.enabled else []
        chosen = {k: v for k, v in vars(settings).items() if k not in ("content", "style")}
        noise = [torch.Generator().manual_seed(first + i) for i in range(number)]
        given = pipelines.make_arguments(prompt, "", self.toy.STEPS, self.toy.GUIDANCE, None)
        block = klora(self.pipe, *paths, seed=first, library=self.library, **chosen) if paths else nullcontext()
        images, run = draw_images(self.pipe, block, **given, num_images_per_prompt=number, generator=noise)
        if run is None:
            return images, ""
        return images + ([draw_plan(run.table())] if settings.show_map else []), run.infotext()


@contextmanager
def make_accordion(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """Used in place of the WebUI's accordion: a checkbox in it enables K-LoRA."""
    import gradio as gr

    with gr.Accordion(label, open=True, elem_id=elem_id):
        yield gr.Checkbox(label="Enable", value=value, elem_id=f"{elem_id}-checkbox")


def build_page(studio: ToyStudio) -> Any:
    """The gradio page; it is not served yet."""
    import gradio as gr

    from ..webui import panel
    from ..webui.parts import Services

    def generate(*values: Any) -> tuple[list[Any], str]:
        try:
            return studio.draw_images(*values)
        except KLoraError as e:
            raise gr.Error(f"K-LoRA: {e}") from None

    script, style = read_assets()
    content, rendering = (next(n for n, role in studio.toy.list_loras().items() if role == r) for r in ("content", "style"))
    with gr.Blocks(title="K-LoRA", head=f"<script>{SHIM}\n{script}</script>", css=style, analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(label="Prompt", value=studio.toy.write_prompt(content, rendering))
                with gr.Row():
                    seed = gr.Number(label="Seed", value=1, precision=0)
                    count = gr.Slider(label="Images", minimum=1, maximum=MAX_IMAGES, step=1, value=4)
                services = Services(studio.list_loras)
                made = panel.build_panel(make_accordion, lambda name: f"script_txt2img_klora_{name}", services)
                for name, value in {"enabled": True, "content": content, "style": rendering, "show_map": True}.items():
                    made.components[list(BY_NAME).index(name)].value = value
                button = gr.Button("Generate", variant="primary")
            with gr.Column(scale=2):
                gallery = gr.Gallery(label="Images", columns=2, format="png")
                text = gr.Textbox(label="Infotext", interactive=False)
        button.click(generate, [prompt, seed, count, *made.components], [gallery, text], api_name="draw")
    return blocks
