"""``ui``: a web page with the same panel as in a WebUI, which draws with the toy model on this machine."""

from __future__ import annotations

import argparse
import errno
import inspect
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
from ..map.told import tell_plan
from ..rule.cache import Library
from ..settings import BY_NAME, Settings, name_arguments, read_settings
from .options import read_whole_number

REPOSITORY = Path(__file__).parents[2]
LOCALHOST = "127.0.0.1"
MAX_IMAGES = 16  # at once
# these call three functions that a WebUI's page has
SHIM = """gradioApp = () => document;
onAfterUiUpdate = (act) => setInterval(act, 300);
onUiLoaded = (act) => document.querySelector(".gradio-container button") ? act() : setTimeout(() => onUiLoaded(act), 100);"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # gradio's own are Google's


def add_commands(commands: Any) -> None:
    command = commands.add_parser("ui", help="serve a page with the WebUI's panel and the toy model")
    command.set_defaults(run=run_ui)
    command.add_argument("--port", default="7860", help="port, open to this machine only (default: %(default)s)")


def run_ui(args: argparse.Namespace) -> None:
    port = read_whole_number(args.port, "port", 1, 65535)
    try:
        import gradio
    except ImportError as e:  # said before a model is loaded
        raise KLoraError(f"the page needs gradio ({e}): pip install '.[ui]', in the project's folder") from None
    if "head" not in inspect.signature(gradio.Blocks).parameters:
        raise KLoraError(
            f"gradio {gradio.__version__} leaves the page without its scripts: pip install '.[ui]', in the project's folder"
        )
    check_port(port)
    read_assets()
    studio = ToyStudio(pipelines.import_toy())
    made = build_page(studio)
    try:
        serve_page(made, studio, port)
    except (OSError, ValueError) as e:
        raise KLoraError(f"the page cannot be served: {quote_first_line(e)}") from None


def serve_page(made: Any, studio: ToyStudio, port: int) -> None:
    """Until the program is interrupted.  Nothing is fetched from elsewhere, and the map has its route."""
    from starlette.middleware import Middleware

    from ..webui.live import add_live_map
    from .offline import KeepLocal

    local = {"middleware": [Middleware(KeepLocal)]}
    app, *_ = made.launch(
        server_name=LOCALHOST, server_port=port, show_api=False, app_kwargs=local, prevent_thread_lock=True
    )
    add_live_map(app, studio.library, studio)
    made.block_thread()


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
    """The texts of the panel's scripts and, last, of its style sheet.  Raises KLoraError if they are not there."""
    scripts = sorted((REPOSITORY / "javascript").glob("*.js"))  # in the order in which a WebUI loads them
    try:
        texts = [path.read_text(encoding="utf-8") for path in (*scripts, REPOSITORY / "style.css")]
    except OSError:
        texts = []
    if len(texts) < 2:
        raise KLoraError("the page's script and style do not come with the package: run ui from the repository")
    return texts


class ToyStudio:
    """The toy model, with the functions that the page calls."""

    def __init__(self, toy: Any):
        self.toy = toy
        with pipelines.silence_libraries():
            self.pipe = toy.load_pipeline()
        self.library = Library()
        self.drawing = False

    def list_loras(self) -> list[str]:
        return list(self.toy.list_loras())

    # what the live map asks for: see webui.live.Source

    def find_files(self, settings: Settings) -> tuple[tuple[str, str], tuple[str, str]]:
        self.refuse_unchosen(settings)
        content, style = ((str(self.toy.find_lora(name)), name) for name in (settings.content, settings.style))
        if content == style:
            raise SettingsError(f"must be another LoRA than content, both are {settings.content!r}", "style")
        return content, style

    def is_drawing(self) -> bool:
        return self.drawing

    def get_option(self, name: str, default: Any) -> Any:
        return default

    def refuse_unchosen(self, settings: Settings) -> None:
        if not (settings.content and settings.style):
            raise SettingsError("no LoRA is chosen", "style" if settings.content else "content")

    def draw_images(self, prompt: str, seed: float, count: float, *values: Any) -> tuple[list[Any], str]:
        """The images, after them the map if it is wanted; and the infotext, as a WebUI writes it.

        Args: values: the panel's, in the order of FIELDS.  Raises KLoraError.
        """
        settings = read_settings(name_arguments(values))
        first = read_whole_number(seed, "seed", 0, 2**63 - 1 - MAX_IMAGES)
        number = read_whole_number(count, "images", 1, MAX_IMAGES)
        if settings.enabled:
            self.refuse_unchosen(settings)
        paths = [self.toy.find_lora(name) for name in (settings.content, settings.style)] if settings.enabled else []
        chosen = {k: v for k, v in vars(settings).items() if k not in ("content", "style")}
        noise = [torch.Generator().manual_seed(first + i) for i in range(number)]
        given = pipelines.make_arguments(prompt, "", self.toy.STEPS, self.toy.GUIDANCE, None)
        block = klora(self.pipe, *paths, seed=first, library=self.library, **chosen) if paths else nullcontext()
        self.drawing = True
        try:
            images, run = draw_images(self.pipe, block, **given, num_images_per_prompt=number, generator=noise)
        finally:
            self.drawing = False
        if run is None:
            return images, ""
        return images + ([self.draw_map(run, settings)] if settings.show_map else []), run.infotext()

    def draw_map(self, run: Any, settings: Settings) -> Any:
        """The picture of what acted."""
        return draw_plan(run.table(), *tell_plan(run.passes[0].plan, settings.content, settings.style))


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

    *scripts, style = read_assets()
    head = "".join(f"<script>{text}</script>" for text in (SHIM, *scripts))
    theme = gr.themes.Default(**FONTS)
    content, style_lora = (next(n for n, role in studio.toy.list_loras().items() if role == r) for r in ("content", "style"))
    with gr.Blocks(title="K-LoRA", head=head, css=style, theme=theme, analytics_enabled=False) as blocks:
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(label="Prompt", value=studio.toy.write_prompt(content))
                with gr.Row():
                    seed = gr.Number(label="Seed", value=1, precision=0, elem_id="txt2img_seed")
                    gr.Number(label="Steps", value=studio.toy.STEPS, interactive=False, elem_id="txt2img_steps")
                    count = gr.Slider(label="Images", minimum=1, maximum=MAX_IMAGES, step=1, value=4)
                services = Services(studio.list_loras)
                made = panel.build_panel(make_accordion, lambda name: f"script_txt2img_klora_{name}", services)
                for name, value in {"enabled": True, "content": content, "style": style_lora, "show_map": True}.items():
                    made.components[list(BY_NAME).index(name)].value = value
                button = gr.Button("Generate", variant="primary")
            with gr.Column(scale=2):
                gallery = gr.Gallery(label="Images", columns=2, format="png")
                text = gr.Textbox(label="Infotext", interactive=False)
        button.click(generate, [prompt, seed, count, *made.components], [gallery, text], api_name="draw")
    return blocks
