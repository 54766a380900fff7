"""Asking the live map's route as the page does."""

from __future__ import annotations

import time
from typing import Any

from fastapi.testclient import TestClient

from klora_lib.settings import FIELDS
from klora_lib.webui.live import PATH


def values(**given: Any) -> list[Any]:
    """The panel's, in its order."""
    chosen = {"enabled": True, "content": "subject", "style": "style", **given}
    return [chosen.get(field.name, "" if field.default is None else field.default) for field in FIELDS]


def ask(client: TestClient, beside: dict[str, Any] | None = None, **given: Any) -> Any:
    """The answer when it is more than the progress."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.post(PATH, json={"values": values(**given), **(beside or {})})
        assert answer.status_code == 200, answer.text
        if "progress" not in answer.json() or time.monotonic() > deadline:
            return answer.json()
