"""The live map's own route: what the panel's values do, asked by the page whenever one of them changes.

Off gradio's queue, so that it need not wait for an image, and on the CPU.  It is there without the WebUI's API too, behind
the login of the WebUI's page.  What is refused is answered with status 200, since a browser reports others as faults.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ..errors import KLoraError
from ..hosts import detect
from ..late import Late
from ..rule.cache import Library
from ..settings import Settings
from .options import read_option
from .routes import read_body, read_object

if TYPE_CHECKING:
    from . import listed, live_map
    from .warm import Files
else:
    listed = Late("klora_lib.webui.listed")
    live_map = Late("klora_lib.webui.live_map")

PATH = "/klora/panel/map"
PAGES_OWN = "/config"  # gradio's route of the page's description, which asks for the page's login


class Source(Protocol):
    """What the route asks of the program around it."""

    def find_files(self, settings: Settings) -> Files:
        """Path and name of the chosen content and style.  Raises SettingsError."""

    def is_drawing(self) -> bool:
        """Whether a job runs now."""

    def get_option(self, name: str, default: Any) -> Any:
        """A setting of the WebUI's settings page."""


class WebUISource:
    """The WebUI that we run in."""

    def find_files(self, settings: Settings) -> Files:
        content, style = ((entry.path, entry.name) for entry in listed.find_entries(detect(), settings))
        return content, style

    def is_drawing(self) -> bool:
        return detect().is_drawing()

    def get_option(self, name: str, default: Any) -> Any:
        return read_option(name, default)


def add_live_map(app: FastAPI, library: Library, source: Source) -> None:
    """Serve the route from ``app``, behind the login of its page.  Called again, it replaces the route.

    Where the page is asked for in a way that we do not know, neither do we know its login: then there is no route.
    """
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) != PATH]
    own = next((route for route in routes if getattr(route, "path", None) == PAGES_OWN), None)
    if own is None:
        return
    live = LateMap(library, source)

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(live.answer, await read_body(request))

    guard = list(getattr(own, "dependencies", []))
    app.add_api_route(PATH, endpoint, methods=["POST"], dependencies=guard, response_model=None, include_in_schema=False)


class LateMap:
    """Answers the page.  The map itself is imported and made when the page first asks."""

    def __init__(self, library: Library, source: Source):
        self.library, self.source = library, source
        self.lock = Lock()
        self.made: live_map.LiveMap | None = None

    def answer(self, body: bytes) -> Response:
        try:
            return JSONResponse(self.find_map().find_map(read_object(body)))
        except KLoraError as e:
            return JSONResponse({"refused": str(e)})

    def find_map(self) -> live_map.LiveMap:
        """Raises LoadError."""
        with self.lock:
            if self.made is None:
                self.made = live_map.LiveMap(self.library, self.source)
            return self.made
