"""The routes under /klora/v1: what the settings are, and what a pair would do, without drawing.  See docs/api.md."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..errors import HostError, KLoraError
from ..hosts import detect
from ..late import Late
from ..rule.cache import Library
from ..settings import BY_NAME, FIELDS, Field, Settings, quote_value, read_integer, read_values
from .refuse import KLoraRefused

if TYPE_CHECKING:
    from ..map import draw as drawings
    from ..map import svg, told
    from ..rule import describe
    from ..rule import plan as plans
    from . import listed
    from .listed import Listed
else:
    drawings = Late("klora_lib.map.draw")
    svg = Late("klora_lib.map.svg")
    told = Late("klora_lib.map.told")
    describe = Late("klora_lib.rule.describe")
    plans = Late("klora_lib.rule.plan")
    listed = Late("klora_lib.webui.listed")

PREFIX = "/klora/v1"
HOSTS_OWN = "/sdapi/v1/txt2img"  # it is there where the WebUI's API is on
LARGEST_BODY = 64 << 10  # bytes
MAX_STEPS, MAX_SEED = 1000, 2**63 - 1
FORMATS = ("json", "png", "svg")


def read_format(value: Any) -> str:
    if value not in FORMATS:
        raise ValueError
    return str(value)


# what a request may have beside the settings
STEPS = Field("steps", "Steps", "How many sampling steps the pass has.",
              lambda v: read_integer(v, 1, MAX_STEPS), f"a whole number from 1 to {MAX_STEPS}", range=(1, 150, 1))
SEED = Field("seed", "Seed", "The image's seed, for the method random.",
             lambda v: read_integer(v, 0, MAX_SEED), f"a whole number from 0 to {MAX_SEED}", methods=("random",))
FORMAT = Field("format", "Format", "In which form /map answers.", read_format, "one of " + ", ".join(FORMATS), FORMATS)
BESIDE: Mapping[str, Any] = {"steps": 30, "seed": 0, "format": "json"}  # with their defaults
BY_ROUTE = {"/plan": (STEPS, SEED), "/map": (STEPS, SEED, FORMAT)}


def add_routes(app: FastAPI, library: Library) -> None:
    """Serve our routes from the WebUI's ``app``, behind what guards the WebUI's own; none where its API is off.

    Called again, it replaces them.
    """
    routes = app.router.routes
    routes[:] = [route for route in routes if not str(getattr(route, "path", "")).startswith(f"{PREFIX}/")]
    own = next((route for route in routes if getattr(route, "path", None) == HOSTS_OWN), None)
    if own is None:
        return
    guard = list(getattr(own, "dependencies", []))
    served: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("GET", "/schema", describe_settings),
        ("GET", "/version", describe_version),
        ("POST", "/plan", make_endpoint("/plan", lambda given: answer_plan(library, given))),
        ("POST", "/map", make_endpoint("/map", lambda given: answer_map(library, given))),
    )
    for method, path, endpoint in served:
        name = f"klora{path.replace('/', '_')}"
        app.add_api_route(
            PREFIX + path, endpoint, methods=[method], dependencies=guard, response_model=None, name=name, tags=["K-LoRA"]
        )


# --- what there is ---


def describe_settings() -> JSONResponse:
    fields = [describe_field(field, field.default) for field in FIELDS]
    beside = [describe_field(field, BESIDE[field.name]) for field in (STEPS, SEED, FORMAT)]
    return JSONResponse({"settings": fields, "request": beside})


def describe_field(field: Field, default: Any) -> dict[str, Any]:
    """A row of the settings table as JSON."""
    choices = [True, False] if isinstance(default, bool) else list(field.choices) or None
    ends = ("minimum", "maximum", "step")  # of the slider; what is accepted may be more
    return {
        "name": field.name,
        "label": field.label,
        "help": field.help,
        "default": default,
        "accepts": field.accepts,
        "choices": choices,
        "range": dict(zip(ends, field.range)) if field.range else None,
        "infotext": field.infotext if field.name in BY_NAME else None,
        "methods": list(field.methods),
    }


def describe_version() -> JSONResponse:
    """Ours, and the WebUI's family; where no job can run in it, the sentence that says why."""
    host, trouble = None, None
    try:
        host = detect().name
    except HostError as e:
        trouble = str(e)
    return JSONResponse({"version": __version__, "webui": host, "trouble": trouble})


# --- what a pair would do ---


def make_endpoint(path: str, answer: Callable[[dict[str, Any]], Response]) -> Callable[..., Any]:
    """``answer`` as a route that reads its own body, and answers from a thread, as the server has other requests."""

    async def endpoint(request: Request) -> Response:
        body = await read_body(request)
        return await run_in_threadpool(act, body)

    def act(body: bytes) -> Response:
        try:
            return answer(read_request(path, body))
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from None

    return endpoint


async def read_body(request: Request) -> bytes:
    """The body.  Of one that is too large nothing is kept, but all is read: who still sends does not see an answer."""
    kept, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= LARGEST_BODY:
            kept += part
    if size > LARGEST_BODY:
        raise KLoraRefused(f"K-LoRA: the request has {size} bytes, and may have {LARGEST_BODY}", status=413)
    return bytes(kept)


def read_request(path: str, body: bytes) -> dict[str, Any]:
    """The values of a request.  Raises KLoraRefused and SettingsError."""
    given = read_object(body)
    beside = {field.name: field for field in BY_ROUTE[path]}
    return {name: BESIDE[name] for name in beside} | read_values(given, {**BY_NAME, **beside})


def read_object(body: bytes) -> dict[str, Any]:
    """A request's JSON.  Raises KLoraRefused."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise KLoraRefused("K-LoRA: the request's body is not JSON") from None
    if not isinstance(given, dict):
        raise KLoraRefused(f"K-LoRA: the request's body must be an object of settings, not {quote_value(given)}")
    return given


def plan_request(library: Library, given: Mapping[str, Any]) -> Listed:
    """Raises a KLoraError."""
    settings = Settings(**{name: value for name, value in given.items() if name in BY_NAME})
    return listed.plan_listed(detect(), library, settings, given["steps"], given["seed"])


def answer_plan(library: Library, given: Mapping[str, Any]) -> JSONResponse:
    """The command line's ``plan --json``, with the report."""
    _, pair, plan = plan_request(library, given)
    steps = given["steps"]
    told = describe.describe_plan(plan, steps, [*pair.content.notes, *pair.style.notes, *plan.notes])
    return JSONResponse({**told, "report": library.explain(pair, plan, steps).as_json()})


def answer_map(library: Library, given: Mapping[str, Any]) -> Response:
    plan = plan_request(library, given).plan
    table = plan.table(given["steps"])
    names = [unit.name for unit in plan.units]
    picture = told.tell_plan(plan)
    if given["format"] == "png":
        buffer = io.BytesIO()
        drawings.draw_plan(table, *picture).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")
    if given["format"] == "svg":
        return Response(svg.draw_svg(table, *picture), media_type="image/svg+xml")
    layers = [{"name": name, "selection": plans.format_row(row)} for name, row in zip(names, table)]
    return JSONResponse({"gamma": plan.gamma, "steps": given["steps"], "layers": layers})
