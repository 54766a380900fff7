"""The WebUI's server, small: its own route, its guard, and how it answers what a route raises."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from PIL import Image

from .host import FakeHost
from .processing import Processing, process_images

BASIC = HTTPBasic()


def make_server(host: FakeHost, api: bool = True, auth: str = "") -> FastAPI:
    """With ``api`` as after --api, behind ``auth`` (user:password) as after --api-auth; the callbacks have been called."""
    app = FastAPI()
    app.add_api_route("/config", lambda: {})  # gradio's, without a login
    if api:
        add_own(app, host, auth)
    for callback in host.script_callbacks.registered["app_started"]:
        host.swallow(callback, None, app)
    return app


def add_own(app: FastAPI, host: FakeHost, auth: str) -> None:
    def ask(given: HTTPBasicCredentials = Depends(BASIC)) -> None:  # noqa: B008
        if f"{given.username}:{given.password}" != auth:
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    def draw(job: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        p = Processing(host, prompt=job["prompt"], steps=job.get("steps", 6), seed=job.get("seed", 11))
        p.script_args = tuple(job.get("alwayson_scripts", {}).get("K-LoRA", {}).get("args", ({},)))
        drawn = process_images(p)
        pictures = [each if isinstance(each, Image.Image) else as_picture(each) for each in drawn.images]
        return {"images": [encode(each) for each in pictures], "info": json.dumps({"infotexts": drawn.infotexts})}

    @app.exception_handler(HTTPException)
    async def answer(request: Request, e: HTTPException) -> JSONResponse:
        told = {"error": type(e).__name__, "detail": e.detail, "body": "", "errors": str(e)}
        return JSONResponse(told, e.status_code)

    guard = [Depends(ask)] if auth else []
    app.add_api_route("/sdapi/v1/txt2img", draw, methods=["POST"], dependencies=guard)


def as_picture(x: Any) -> Image.Image:
    pixels = (x[0, :3].permute(1, 2, 0).sigmoid() * 255).byte().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def encode(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
