"""The sign-in page and signing out: plain HTML forms, no script needed."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from appliance import auth, logs
from appliance.db.base import now
from appliance.web import bodies
from appliance.web.api.problems import problem
from appliance.web.gate import VISIT, session_name
from appliance.web.panel.markup import el
from appliance.web.panel.parts import notice
from appliance.web.panel.shell import MARK

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.auth import SignIn
    from appliance.web.desk import Desk

MAX_FORM_BYTES: Final = 4096
FONTS: Final = f"/_nicegui/{version('nicegui')}/static/fonts.css"
SIGN_IN_REFUSED: Final = "web.sign_in_refused"
_logger = logs.logger(__name__)
_WRONG: Final = "Name or password is wrong, or this user is disabled."
_UNREADABLE: Final = "This form could not be read. Fill it in again."
_LOCKED: Final = "Too many wrong passwords. Wait a while, then try again."


class _Checker:
    """Checks names and passwords, two at a time: argon2 takes 19 MiB and a core each time."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._free = asyncio.Semaphore(2)

    async def check(self, name: str, password: str) -> SignIn | Response:
        """Return the sign-in, or the problem to answer with."""
        async with self._free:
            try:
                return await to_thread.run_sync(_sign_in, self._desk, name, password)
            except auth.LockedOutError:
                _logger.warning(SIGN_IN_REFUSED, reason="locked_out")
                return problem(429, _LOCKED)
            except auth.SignInError:
                _logger.warning(SIGN_IN_REFUSED, reason="wrong")
                return problem(401, _WRONG)


def router(desk: Desk) -> APIRouter:
    """Return the routes of signing in and out."""
    routes = APIRouter(include_in_schema=False)
    checker = _Checker(desk)
    _add_forms(routes, desk, checker)
    _add_session(routes, desk, checker)
    return routes


def _add_forms(routes: APIRouter, desk: Desk, checker: _Checker) -> None:
    """Add what a person's browser uses."""

    @routes.get("/sign-in")
    async def show(request: Request) -> Response:
        if request.scope.get(VISIT) is not None:
            return RedirectResponse("/", status_code=303)
        ended = "ended" in request.query_params
        message = notice("info", "Your session has ended. Sign in again.") if ended else None
        return HTMLResponse(page(desk.settings.name, inside(request.query_params.get("next", "")), message))

    @routes.post("/sign-in")
    async def enter(request: Request) -> Response:
        try:
            form = bodies.fields_of_form(await bodies.read(request, MAX_FORM_BYTES))
        except bodies.BodyError:
            shown = page(desk.settings.name, "", notice("bad", _UNREADABLE))
            return HTMLResponse(shown, status_code=400)
        target = inside(form.get("next", ""))
        found = await checker.check(form.get("name", ""), form.get("password", ""))
        if isinstance(found, Response):
            text = _LOCKED if found.status_code == 429 else _WRONG
            shown = page(desk.settings.name, target, notice("bad", text))
            return HTMLResponse(shown, status_code=found.status_code)
        answer = RedirectResponse(target or "/", status_code=303)
        _set_cookie(desk, answer, found)
        return answer

    @routes.post("/sign-out")
    async def leave(request: Request) -> Response:
        await _end(desk, request)
        answer = RedirectResponse("/sign-in", status_code=303)
        _clear_cookie(desk, answer)
        return answer


def _add_session(routes: APIRouter, desk: Desk, checker: _Checker) -> None:
    """Add what programs, and the panel's script, use."""

    @routes.post("/api/v1/session")
    async def enter(request: Request) -> Response:
        try:
            body = bodies.parsed(await bodies.read(request, MAX_FORM_BYTES))
            fields = body if isinstance(body, dict) else {}
            name, password = (bodies.checked(str(fields.get(key, ""))) for key in ("name", "password"))
        except bodies.BodyError:
            return problem(400, "Expected a JSON object with name and password.")
        found = await checker.check(name, password)
        if isinstance(found, Response):
            return found
        answer = JSONResponse({"name": found.principal.name, "rights": sorted(found.principal.rights)})
        _set_cookie(desk, answer, found)
        return answer

    @routes.delete("/api/v1/session")
    async def leave(request: Request) -> Response:
        await _end(desk, request)
        answer = Response(status_code=204)
        _clear_cookie(desk, answer)
        return answer

    @routes.get("/session")
    async def session(request: Request) -> Response:
        viewer = request.scope[VISIT].viewer
        return JSONResponse({"name": viewer.name, "expires_at": viewer.expires_at.isoformat()})


def _sign_in(desk: Desk, name: str, password: str) -> SignIn:
    return auth.sign_in(
        desk.zone.engine,
        desk.zone.ledger,
        name=name[:64],
        password=password[:512],
        hours=desk.settings.web.session_hours,
        at=now(),
    )


async def _end(desk: Desk, request: Request) -> None:
    visit = request.scope.get(VISIT)
    if visit is not None:
        await to_thread.run_sync(auth.sign_out, desk.zone.engine, visit.token)
        desk.sockets.close(session_name(visit.token))


def _set_cookie(desk: Desk, answer: Response, found: SignIn) -> None:
    lasts_s = max(1, int((found.principal.expires_at - now()).total_seconds()))
    answer.set_cookie(
        desk.cookie_name,
        found.token,
        max_age=lasts_s,
        path="/",
        secure=desk.secure,
        httponly=True,
        samesite="strict",
    )


def _clear_cookie(desk: Desk, answer: Response) -> None:
    answer.delete_cookie(desk.cookie_name, path="/", secure=desk.secure, httponly=True, samesite="strict")


def inside(target: str) -> str:
    """Return an address inside the panel, empty for any other."""
    parts = urlsplit(target)
    safe = (
        target.startswith("/")
        and not target.startswith(("//", "/\\"))
        and not parts.netloc
        and not parts.scheme
    )
    return target if safe and target.isprintable() and "\\" not in target and len(target) < 500 else ""


def page(node_name: str, target: str, message: Markup | None = None) -> str:
    """Draw the sign-in page."""
    main = el(
        "main",
        el("div", MARK, el("h1", "Cloister"), el("small", node_name), class_="brand"),
        message,
        _form_markup(target),
        el("footer", "Patient data never leaves the building."),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"Sign in · {node_name} · Cloister"),
        el("link", rel="icon", href="/static/favicon.svg", type="image/svg+xml"),
        el("link", rel="stylesheet", href=FONTS),
        el("link", rel="stylesheet", href="/static/panel.css"),
        el("script", src="/static/theme.js"),
    )
    whole = el("html", head, el("body", main, class_="sign-in"), lang="en")
    return f"<!doctype html>{whole}"


def _form_markup(target: str) -> Markup:
    plain = {"autocapitalize": "none", "spellcheck": "false", "required": True}
    name = el("input", name="name", autocomplete="username", autofocus=True, maxlength=64, **plain)
    password = el(
        "input", name="password", type="password", autocomplete="current-password", maxlength=256, **plain
    )
    return el(
        "form",
        el("input", type="hidden", name="next", value=target) if target else None,
        el("label", el("span", "Name"), name, class_="field"),
        el("label", el("span", "Password"), password, class_="field"),
        el("button", "Sign in", type="submit", class_="button primary"),
        method="post",
        action="/sign-in",
    )
