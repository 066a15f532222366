"""The JSON API: every panel page's view and actions under ``/api/v1``, health, metrics, pictures."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.encoders import jsonable_encoder
from starlette.responses import JSONResponse, Response

from appliance import logs
from appliance.auth.rights import Right
from appliance.web import bodies, metrics, pictures
from appliance.web.api import tryout
from appliance.web.api.problems import problem
from appliance.web.gate import VISIT
from appliance.web.panel import live
from appliance.web.panel.page import NotThereError, Page, Query, Told
from appliance.web.panel.pages import PAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.web.desk import Desk, Viewer, Visit

MAX_BODY_BYTES: Final = 16_384
API_FAILED: Final = "web.api_failed"
_logger = logs.logger(__name__)
_FORBIDDEN: Final = "You do not have the right to do this."


def api_path(page: Page[Any]) -> str:
    """Return where a page's view stands in the API."""
    return "/api/v1/home" if page.path == "/" else f"/api/v1{page.path}"


def router(desk: Desk) -> APIRouter:
    """Return all routes of the API."""
    routes = APIRouter(include_in_schema=False)
    for page in PAGES:
        routes.add_api_route(api_path(page), _view(desk, page), methods=["GET"])
        if page.actions:
            routes.add_api_route(
                f"{api_path(page)}/actions/{{action}}", _action(desk, page), methods=["POST"]
            )
    routes.add_api_route("/results/{result_id}/picture.png", _picture(desk), methods=["GET"])
    routes.add_api_route("/api/v1/results/{result_id}/picture.png", _picture(desk), methods=["GET"])
    for prefix in ("", "/api/v1"):
        for path, serve in (
            ("quarantine/{item_id}/{decision_id}/{picture}.png", _trial_picture),
            ("instances/{instance_id}/picture.png", _frame),
        ):
            routes.add_api_route(f"{prefix}/{path}", serve(desk), methods=["GET"])
    routes.add_api_route(tryout.PATH, tryout.route(desk), methods=["POST"])
    routes.add_api_route("/livez", _livez, methods=["GET"])
    routes.add_api_route("/readyz", _readyz(desk), methods=["GET"])
    routes.add_api_route("/healthz", _healthz(desk), methods=["GET"])
    routes.add_api_route("/metrics", _metrics(desk), methods=["GET"])
    return routes


def _viewer(request: Request) -> Viewer | None:
    visit: Visit | None = request.scope.get(VISIT)
    return None if visit is None else visit.viewer


def _view(desk: Desk, page: Page[Any]) -> Callable[[Request], Any]:
    async def view(request: Request) -> Response:
        viewer = _viewer(request)
        if viewer is None or not viewer.may(page.right):
            return problem(403, _FORBIDDEN)
        query = Query({**request.query_params, **request.path_params})
        try:
            found = await to_thread.run_sync(page.load, desk, viewer, query)
        except NotThereError:
            return problem(404, "There is nothing here.")
        except Exception:
            _logger.exception(API_FAILED, page=page.path)
            return problem(500, "The view could not be read; the node's log says why.")
        return JSONResponse(jsonable_encoder(found))

    return view


def _action(desk: Desk, page: Page[Any]) -> Callable[[Request, str], Any]:
    async def act(request: Request, action: str) -> Response:
        visit: Visit = request.scope[VISIT]
        if action not in page.actions:
            return problem(404, "There is no such action here.")
        try:
            if not await to_thread.run_sync(live.may_act, desk, page, visit.viewer, action):
                return problem(403, _FORBIDDEN)
            body = bodies.parsed(await bodies.read(request, MAX_BODY_BYTES))
            fields = {**live.fields_of(body), **live.fields_of(request.path_params)}
        except bodies.BodyError:
            return problem(400, "Expected a JSON object of texts.")
        try:
            done, said = await to_thread.run_sync(live.act, desk, page, visit, action, fields)
        except live.SessionEndedError:
            return problem(401, "Sign in first.")
        except Exception:
            _logger.exception(API_FAILED, page=page.path, action=action)
            return problem(500, "This did not work; the node's log says why.")
        return _answer(done, said)

    return act


def _answer(done: bool, said: str | Told) -> Response:
    if isinstance(said, Told):
        return JSONResponse({"done": done, "message": said.message, **said.content})
    return JSONResponse({"done": True, "message": said}) if done else problem(409, said)


def _picture(desk: Desk) -> Callable[[Request, str], Any]:
    async def picture(request: Request, result_id: str) -> Response:
        viewer = _viewer(request)
        if viewer is None or not viewer.may(Right.VIEW) or not viewer.may(Right.VIEW_IDENTITY):
            return problem(403, _FORBIDDEN)
        small = "small" in request.query_params
        try:
            content = await to_thread.run_sync(lambda: pictures.png(desk.zone, result_id, small=small))
        except pictures.PictureError:
            return problem(404, "There is no picture.")
        return Response(content, media_type="image/png")

    return picture


def _trial_picture(desk: Desk) -> Callable[[Request, str, str, str], Any]:
    async def picture(request: Request, item_id: str, decision_id: str, picture: str) -> Response:
        viewer = _viewer(request)
        if viewer is None or not viewer.may(Right.VIEW) or not viewer.may(Right.VIEW_IDENTITY):
            return problem(403, _FORBIDDEN)
        content = await to_thread.run_sync(pictures.of_trial, desk.zone, item_id, decision_id, picture)
        if content is None:
            return problem(404, "There is no picture.")
        return Response(content, media_type="image/png")

    return picture


def _frame(desk: Desk) -> Callable[[Request, str], Any]:
    async def picture(request: Request, instance_id: str) -> Response:
        viewer = _viewer(request)
        if viewer is None or not viewer.may(Right.VIEW) or not viewer.may(Right.VIEW_IDENTITY):
            return problem(403, _FORBIDDEN)
        number = Query(request.query_params).number("frame")
        try:
            content = await to_thread.run_sync(pictures.frame, desk.zone, instance_id, number)
        except pictures.PictureError:
            return problem(404, "There is no picture.")
        return Response(content, media_type="image/png")

    return picture


async def _livez() -> Response:
    """Say that this process answers: a restart would not help where this does."""
    return JSONResponse({"alive": True})


def _readyz(desk: Desk) -> Callable[[Request], Any]:
    async def readyz(request: Request) -> Response:
        del request
        found = await to_thread.run_sync(desk.health)
        return JSONResponse({"ready": found.ready}, status_code=200 if found.ready else 503)

    return readyz


def _healthz(desk: Desk) -> Callable[[Request], Any]:
    async def healthz(request: Request) -> Response:
        found = await to_thread.run_sync(desk.health)
        viewer = _viewer(request)
        body: dict[str, object] = {"well": found.well}
        if viewer is not None and viewer.may(Right.VIEW):
            body["checks"] = jsonable_encoder(found.checks)
        return JSONResponse(body, status_code=200 if found.well else 503)

    return healthz


def _metrics(desk: Desk) -> Callable[[Request], Any]:
    async def scrape(request: Request) -> Response:
        viewer = _viewer(request)
        if not (viewer is not None and viewer.may(Right.VIEW)) and not _is_local(request):
            return problem(403, "Metrics are for this machine, or for a signed-in person.")
        content, kind = await to_thread.run_sync(metrics.exposition, desk)
        return Response(content, media_type=kind)

    return scrape


def _is_local(request: Request) -> bool:
    """Whether the request comes from this very machine, not through a proxy on it."""
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
