"""The demo page asks nothing of the internet: gradio's template names fonts and a script of other servers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
# <link href="https://…"> and <script src="https://…"></script>, of any other server
FOREIGN = re.compile(rb"<link\b[^>]*\bhref=[\"']https?://[^>]*>|<script\b[^>]*\bsrc=[\"']https?://[^>]*>\s*</script>", re.S)


def remove_foreign(page: bytes) -> bytes:
    """An HTML page without what a browser would fetch from other servers."""
    return FOREIGN.sub(b"", page)


class KeepLocal:
    """ASGI middleware: every HTML page goes through ``remove_foreign``; everything else passes as it comes."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def forward(message: Message) -> None:
            if message["type"] == "http.response.start":
                types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
                if any(value.startswith(b"text/html") for value in types):
                    start.update(message)
                    return
            elif start:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    page = remove_foreign(bytes(body))
                    headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                    start["headers"] = [*headers, (b"content-length", str(len(page)).encode())]
                    await send(start)
                    await send({"type": "http.response.body", "body": page})
                return
            await send(message)

        await self.app(scope, receive, forward)
