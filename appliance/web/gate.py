"""The one gate before everything: host, origin, session, headers, sockets. What is not allowed stays out."""

from __future__ import annotations

import hashlib
import re
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote

from anyio import to_thread
from starlette.responses import RedirectResponse, Response

from appliance import logs
from appliance.web.api.problems import problem
from appliance.web.desk import Desk, Visit
from appliance.web.headers import HeaderedSend, viewer_policy
from appliance.web.origins import Origins, may_change
from appliance.web.sockets import Receive, Send, closable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

VISIT: Final = "cloister.visit"  # in the ASGI scope: who asks, None where nobody need be signed in
SOCKET_PATH: Final = "/_nicegui_ws/"
DICOMWEB: Final = "/dicom-web"
VIEWER: Final = "/viewer"
# Where a program may show a bearer token instead of a session; never where a page or a socket is opened.
_FOR_PROGRAMS: Final = re.compile(rf"(?:{DICOMWEB}/|/api/v1/(?!session\Z)|/metrics\Z)")
PUBLIC: Final = frozenset({"/sign-in", "/healthz", "/livez", "/readyz", "/metrics", "/api/v1/session"})
PUBLIC_FILES: Final = frozenset(
    {"/static/panel.css", "/static/theme.js", "/static/favicon.svg", "/favicon.ico"}
)
_LIBRARY: Final = re.compile(
    r"/_nicegui/[0-9.]+/static/[A-Za-z0-9_./-]+\Z"
)  # the framework's own files, fonts among them
_DROPPED: Final = frozenset({b"x-forwarded-prefix"})

REFUSED: Final = "web.refused"
_logger = logs.logger(__name__)


class Gate:
    """ASGI application in front of the panel and the API.

    Parameters
    ----------
    app : ASGI application
    desk : Desk
    belongs : callable
        Whether the panel page of this id was opened by this session.
    """

    def __init__(self, app: App, desk: Desk, belongs: Callable[[str, str], bool]) -> None:
        self._app = app
        self._desk = desk
        self._belongs = belongs
        self._origins = Origins.of(desk.settings.web)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request or socket pass, or answer why not."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        path = scope["path"]
        answer = self._headered(send, path, headers.get("host", ""))
        bearer = bearer_token(headers) if _FOR_PROGRAMS.match(path) else None
        refused = self._refuse(scope, headers, path, by_program=bearer is not None)
        if refused is not None:
            await refused(scope, receive, answer)
            return
        is_file = path in PUBLIC_FILES or _LIBRARY.match(path) is not None
        if bearer is not None:
            visit = await self._program(bearer)
        else:
            visit = None if is_file else await self._visit(headers)
        if visit is None and (bearer is not None or not (is_file or path in PUBLIC)):
            await _not_signed_in(scope, by_program=bearer is not None)(scope, receive, answer)
            return
        scope[VISIT] = visit
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in _DROPPED]
        await self._app(scope, receive, answer)

    def _headered(self, send: Send, path: str, host: str) -> HeaderedSend:
        secure = self._desk.secure
        if path == VIEWER or path.startswith(f"{VIEWER}/"):
            origins = (f"{'https' if secure else 'http'}://{host}", self._origins.public)
            content_policy = viewer_policy(origins, (f"{DICOMWEB}/", f"{VIEWER}/"))
            return HeaderedSend(send, host=host, secure=secure, cacheable=True, content_policy=content_policy)
        cacheable = path.startswith(("/_nicegui/", "/static/")) and "dynamic_resources" not in path
        return HeaderedSend(send, host=host, secure=secure, cacheable=cacheable)

    def _refuse(
        self, scope: Scope, headers: dict[str, str], path: str, *, by_program: bool
    ) -> Response | None:
        if not self._origins.knows_host(headers.get("host", "")):
            return self._refusal(
                "unknown_host", 421, "This name is not one of this node's; set web.public_url."
            )
        if path.startswith(SOCKET_PATH):
            return self._refusal("polling", 403, "The panel is reached through a web socket only.")
        if by_program:
            return None  # no browser adds a bearer token by itself, so no foreign page can borrow it
        is_api = path.startswith(("/api/", f"{DICOMWEB}/"))
        if not may_change(self._origins, scope["method"], headers, scheme=scope["scheme"], is_api=is_api):
            return self._refusal("foreign_origin", 403, "The request comes from another origin.")
        return None

    def _refusal(self, reason: str, status: int, detail: str) -> Response:
        _logger.warning(REFUSED, reason=reason)
        return problem(status, detail)

    async def _visit(self, headers: dict[str, str]) -> Visit | None:
        token = session_token(headers, self._desk.cookie_name)
        if token is None:
            return None
        viewer = await to_thread.run_sync(self._desk.who, token)
        return None if viewer is None else Visit(viewer, token, session_name(token))

    async def _program(self, bearer: str) -> Visit | None:
        found = await to_thread.run_sync(self._desk.bearer, bearer)
        if found is None:
            _logger.warning(REFUSED, reason="bearer_token")
            return None
        return Visit(found.principal, bearer, bearer=found.token_name)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        reason = self._refuse_socket(scope, headers)
        visit = None if reason else await self._visit(headers)
        if reason is None and visit is None:
            reason = "no_session"
        client = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client_id", [""])[0]
        if visit is not None and not self._belongs(client, visit.session):
            reason = "foreign_page"
        if reason is not None or visit is None:
            _logger.warning(REFUSED, reason=reason, socket=True)
            await receive()
            await send({"type": "websocket.close", "code": 4403, "reason": str(reason)})
            return
        scope[VISIT] = visit
        with self._desk.sockets.opened(visit.session, visit.token) as closing:
            await self._app(scope, closable(receive, send, closing), send)

    def _refuse_socket(self, scope: Scope, headers: dict[str, str]) -> str | None:
        if not scope["path"].startswith(SOCKET_PATH):
            return "no_such_socket"
        host = headers.get("host", "")
        if not self._origins.knows_host(host):
            return "unknown_host"
        if not self._origins.is_ours(headers.get("origin"), scheme=scope["scheme"], host=host):
            return "foreign_origin"
        return None


def _not_signed_in(scope: Scope, *, by_program: bool) -> Response:
    """Send a person to the sign-in page and back; tell a program."""
    path = scope["path"]
    if by_program or path.startswith(f"{DICOMWEB}/"):
        answer = problem(401, "Expected a valid bearer token, or the session of a signed-in person.")
        answer.headers["www-authenticate"] = (
            'Bearer realm="cloister", error="invalid_token"' if by_program else 'Bearer realm="cloister"'
        )
        return answer
    wants_page = scope["method"] == "GET" and not path.startswith(("/api/", "/session", "/_nicegui"))
    if not wants_page or path.endswith(".png"):
        return problem(401, "Sign in first.")
    query = scope.get("query_string", b"").decode("latin-1")
    target = f"{path}?{query}" if query else path
    return RedirectResponse(
        "/sign-in" if target == "/" else f"/sign-in?next={quote(target)}", status_code=303
    )


def session_token(headers: dict[str, str], cookie_name: str) -> str | None:
    """Return the session cookie's content from request headers."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(cookie_name)
    except CookieError:
        return None
    return morsel.value if morsel is not None and 0 < len(morsel.value) < 200 else None


def bearer_token(headers: dict[str, str]) -> str | None:
    """Return the bearer token of request headers (RFC 6750 2.1), perhaps an empty one; None without any."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip()[:200] if scheme.lower() == "bearer" else None


def session_name(token: str) -> str:
    """Return a name of a session for use inside this process."""
    return hashlib.sha256(b"socket\x00" + token.encode()).hexdigest()


def _headers(scope: Scope) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", [])
    }
