"""How long requests of DICOMweb take, by service."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from appliance import figures
from appliance.web.gate import DICOMWEB

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def service_of(method: str, path: str) -> str:
    """Return the service that a request asks for (PS3.18 10.3)."""
    if method == "POST":
        return "stow"
    last = path.rstrip("/").rpartition("/")[2]
    return "qido" if last in {"studies", "series", "instances"} else "wado"


class Timed:
    """Counts the seconds until the end of each answer under DICOMweb's path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{DICOMWEB}/"):
            await self._app(scope, receive, send)
            return
        began, said = time.monotonic(), {"status": 500}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                said["status"] = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            service, status = service_of(scope["method"], scope["path"]), f"{said['status'] // 100}xx"
            figures.observe(figures.DICOMWEB_SECONDS, time.monotonic() - began, service, status)
