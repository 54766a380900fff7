"""Theorem: what the demo page serves names no other server from which a browser would fetch."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

gradio = pytest.importorskip("gradio")

from klora_lib.cli.offline import KeepLocal, remove_foreign  # noqa: E402

PAGE = """<html><head><link rel="preconnect" href="https://fonts.gstatic.com" crossorigin="anonymous" />
<link rel='stylesheet' href='./theme.css'><script src="https://cdn.example/x.js" async></script>
<script src="./assets/index.js"></script><meta property="og:url" content="https://gradio.app/" /></head>é</html>"""


def find_foreign(page: str) -> list[str]:
    return re.findall(r"<(?:link|script|img|iframe)\b[^>]*(?:href|src)=[\"']https?://[^>]*>", page)


def test_what_is_of_other_servers_is_taken_out_and_nothing_else() -> None:
    kept = remove_foreign(PAGE.encode()).decode()
    assert find_foreign(PAGE) and find_foreign(kept) == []
    assert "./theme.css" in kept and "./assets/index.js" in kept and kept.endswith("é</html>")


def test_every_html_page_and_only_these() -> None:
    app = FastAPI(middleware=[Middleware(KeepLocal)])
    app.add_api_route("/", lambda: HTMLResponse(PAGE))
    app.add_api_route("/json", lambda: {"page": PAGE})
    client = TestClient(app)
    found = client.get("/")
    assert find_foreign(found.text) == [] and found.headers["content-length"] == str(len(found.content))
    assert client.get("/json").json() == {"page": PAGE}
    assert client.get("/nothing").status_code == 404


@pytest.mark.filterwarnings("ignore:The `name` is not the first parameter:DeprecationWarning")
def test_the_demo_page_itself() -> None:
    """What gradio serves with our theme."""
    from klora_lib.cli.ui import FONTS

    with gradio.Blocks(theme=gradio.themes.Default(**FONTS), analytics_enabled=False) as blocks:
        gradio.Markdown("a")
    app = gradio.routes.App.create_app(blocks, app_kwargs={"middleware": [Middleware(KeepLocal)]})
    client = TestClient(app)
    page = client.get("/").text
    assert find_foreign(page) == [] and "gradio_config" in page
    assert "googleapis" not in client.get("/theme.css").text and "googleapis" not in client.get("/config").text
