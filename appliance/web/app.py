"""The web application: routes of the API, pages of the panel, one gate in front of both."""

from __future__ import annotations

import asyncio
import gc
import itertools
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread
from fastapi import FastAPI, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.responses import FileResponse, RedirectResponse, Response

from appliance import children, logs
from appliance.web import dicomweb, signing_in, viewer
from appliance.web.api import routes
from appliance.web.api.problems import problem
from appliance.web.gate import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from appliance.web.desk import Desk

STATIC: Final = Path(__file__).with_name("static")
SWEEP_EVERY_S: Final = 5.0
TRIM_EVERY_SWEEPS: Final = 12
# Instances, frames and bulk data go out as they are: mostly compressed, and never held back to be compressed.
NOT_ZIPPED: Final = (
    *DEFAULT_EXCLUDED_CONTENT_TYPES,
    "application/dicom",
    "application/octet-stream",
    "image/*",
    "multipart/related",
)
SWEEP_FAILED: Final = "web.sweep_failed"
TRAFFIC_UNWRITTEN: Final = "web.traffic_unwritten"
_logger = logs.logger(__name__)


def build_routes(desk: Desk) -> FastAPI:
    """Build the application without the panel's pages and without the gate."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.add_exception_handler(HTTPException, _as_problem)
    app.include_router(signing_in.router(desk))
    app.include_router(routes.router(desk))
    dicomweb.mount(app, desk)
    app.include_router(viewer.router(desk))
    app.add_api_route("/static/{name}", _static, methods=["GET"], include_in_schema=False)
    app.add_api_route("/favicon.ico", _favicon, methods=["GET"], include_in_schema=False)
    return app


def build(desk: Desk) -> Any:
    """Build the whole application: an ASGI callable. Once in a process: the framework is global."""
    from nicegui import ui  # noqa: PLC0415 - heavy, and only the web process needs it

    from appliance.web.panel import live  # noqa: PLC0415 - as above

    app = build_routes(desk)
    live.register(desk)
    live.harden()
    ui.run_with(
        app,
        title="Cloister",
        favicon=STATIC / "favicon.svg",
        language="en-US",
        dark=False,
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=10,
        message_history_length=50,
        gzip_middleware_factory=None,
        show_welcome_message=False,
    )
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        sweeping = asyncio.create_task(_sweep(desk))
        async with inner(application) as state:
            yield state
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await to_thread.run_sync(_write_traffic, desk)

    app.router.lifespan_context = lifespan
    return zipped(Gate(app, desk, live.belongs))


def zipped(app: Any) -> Any:
    """Compress what an application answers, where that is text."""
    return GZipMiddleware(app, minimum_size=1000, compresslevel=5, exclude_content_types=NOT_ZIPPED)


async def _sweep(desk: Desk) -> None:
    """Close the sockets of sessions that ended by time, or elsewhere on the node."""
    for turn in itertools.count(1):
        await asyncio.sleep(SWEEP_EVERY_S)
        await to_thread.run_sync(_write_traffic, desk)
        if turn % TRIM_EVERY_SWEEPS == 0:
            await to_thread.run_sync(_give_memory_back)
        for session, token in desk.sockets.sessions().items():
            try:
                viewer = await to_thread.run_sync(desk.who, token)
            except Exception:
                _logger.exception(SWEEP_FAILED)
                continue
            if viewer is None:
                desk.sockets.close(session)


def _write_traffic(desk: Desk) -> None:
    """Write what came and went by the web; without a database it is kept for the next time."""
    try:
        desk.meter.flush()
    except SQLAlchemyError as error:
        _logger.warning(TRAFFIC_UNWRITTEN, error=type(error).__name__)


def _give_memory_back() -> None:
    """Return what closed pages left behind to the system, where the C library can."""
    gc.collect()
    children.return_freed_memory()


async def _as_problem(request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    return problem(status, "There is nothing here." if status == 404 else "The request cannot be answered.")


async def _static(name: str) -> Response:
    path = STATIC / name
    if path.parent != STATIC or not path.is_file():
        return problem(404, "There is nothing here.")
    return FileResponse(path, headers={"cache-control": "no-cache"})


async def _favicon() -> Response:
    return RedirectResponse("/static/favicon.svg", status_code=308)
