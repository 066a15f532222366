"""Pages on the page framework: built on request, refreshed over the socket, actions checked one by one.

This is the only module of the panel that knows NiceGUI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request  # noqa: TC002 - the framework reads handlers' annotations
from nicegui import Client, core, run, ui
from starlette.responses import Response  # noqa: TC002 - as above

from appliance import logs
from appliance.errors import ApplianceError
from appliance.web import bodies
from appliance.web.api.problems import problem
from appliance.web.gate import VISIT
from appliance.web.panel import shell
from appliance.web.panel.markup import el
from appliance.web.panel.page import ActionRefusedError, Drawing, NotThereError, Page, Query, Told
from appliance.web.panel.pages import PAGES
from appliance.web.panel.parts import link, nothing, page_head

if TYPE_CHECKING:
    from markupsafe import Markup

    from appliance.web.desk import Desk, Viewer, Visit

PAGE_FAILED: Final = "web.page_failed"
ACTION_DONE: Final = "web.action_done"
ACTION_REFUSED: Final = "web.action_refused"
ACTION_FAILED: Final = "web.action_failed"
MAX_FIELDS: Final = 30
MAX_FIELD_LENGTH: Final = 2000
_logger = logs.logger(__name__)


class SessionEndedError(ApplianceError):
    """The session behind a page is over, or lost the right to it."""


@dataclass(frozen=True)
class Drawn:
    """Everything that a page shows at one moment."""

    top: Markup
    side: Markup
    sections: Mapping[str, Markup]


def render(desk: Desk, page: Page[Any], query: Query, token: str) -> Drawn:
    """Ask who looks, read the view, draw it. Blocks: runs off the event loop.

    Raises
    ------
    SessionEndedError
        If the session is over or its person may no longer see this page.
    """
    viewer = desk.who(token)
    if viewer is None or not viewer.may(page.right):
        raise SessionEndedError("session: over, or without the right to this page")
    frame = shell.load(desk)
    try:
        sections: Drawing = page.draw(page.load(desk, viewer, query), viewer)
    except NotThereError:
        sections = not_there()
    return Drawn(shell.top(frame, viewer), shell.side(frame, viewer, page.menu or page.path), sections)


def may_act(desk: Desk, page: Page[Any], viewer: Viewer, name: str) -> bool:
    """Whether a person may do an action of a page; who may not is written down. Blocks.

    Parameters
    ----------
    desk, page, viewer : Desk, Page, Viewer
    name : str
        Of the action; one that the page does not have, nobody may do.
    """
    action = page.actions.get(name)
    if action is not None and viewer.may(page.right) and viewer.may(action.right):
        return True
    known = name if action else "unknown"
    _logger.warning(ACTION_REFUSED, action=known, user_id=viewer.user_id, reason="right")
    if action is not None and action.refused is not None:
        action.refused(desk, viewer)
    return False


def act(
    desk: Desk, page: Page[Any], visit: Visit, name: str, fields: Mapping[str, str]
) -> tuple[bool, str | Told]:
    """Do one action of a page for the one behind a visit; return whether it was done, and what to say.

    The person and the right are asked anew each time. Blocks: runs off the event loop.
    """
    viewer = desk.asks(visit)
    if viewer is None:
        raise SessionEndedError("session: over")
    if not may_act(desk, page, viewer, name):
        return False, "You do not have the right to do this."
    try:
        said = page.actions[name].run(desk, viewer, fields)
    except ActionRefusedError as refused:
        _logger.info(ACTION_REFUSED, action=name, user_id=viewer.user_id, reason="state")
        return False, str(refused)
    _logger.info(ACTION_DONE, action=name, user_id=viewer.user_id)
    return True, said


def fields_of(values: object) -> dict[str, str]:
    """Take the fields of an event or a request body: short texts by name, nothing else.

    Raises
    ------
    BodyError
        When a text cannot be stored.
    """
    if not isinstance(values, Mapping) or len(values) > MAX_FIELDS:
        return {}
    return {
        str(key)[:60]: bodies.checked(value[:MAX_FIELD_LENGTH])
        for key, value in values.items()
        if isinstance(value, str)
    }


@dataclass
class _Open:
    """An open page: its elements and what they show."""

    desk: Desk
    page: Page[Any]
    query: Query
    visit: Visit
    elements: dict[str, ui.html] = field(default_factory=dict)
    shown: dict[str, Markup] = field(default_factory=dict)
    body: ui.element | None = None

    def build(self, drawn: Drawn) -> None:
        client = ui.context.client
        own = "".join(f'<script defer src="/static/{name}"></script>' for name in self.page.scripts)
        ui.add_head_html(_HEAD + own)
        with client.layout:
            self._add("top", drawn.top, "header", "top").move(target_index=0)
            self._add("side", drawn.side, "nav", "side").props('aria-label="Pages"').move(target_index=1)
        self.body = ui.element("div").classes("panel").props('id="content"')
        with self.body:
            for name, markup in drawn.sections.items():
                self._add(f"section.{name}", markup)
        ui.html(shell.furniture(), sanitize=True)
        ui.on("panel_action", self.on_action)
        ui.timer(self.page.refresh_s, self.refresh, immediate=False)

    def _add(self, key: str, markup: Markup, tag: str = "div", class_: str = "") -> ui.html:
        element = ui.html(markup, tag=tag).classes(class_)
        self.elements[key] = element
        self.shown[key] = markup
        return element

    def show(self, drawn: Drawn) -> None:
        wanted = {"top": drawn.top, "side": drawn.side}
        wanted |= {f"section.{name}": markup for name, markup in drawn.sections.items()}
        for key in [key for key in self.elements if key not in wanted]:
            self.elements.pop(key).delete()
            del self.shown[key]
        for key, markup in wanted.items():
            if key not in self.elements and self.body is not None:
                with self.body:
                    self._add(key, markup)
            elif self.shown[key] != markup:
                self.shown[key] = markup
                self.elements[key].set_content(markup)

    async def refresh(self) -> None:
        try:
            drawn = await run.io_bound(render, self.desk, self.page, self.query, self.visit.token)
        except SessionEndedError:
            self.end()
        except Exception:
            _logger.exception(PAGE_FAILED, page=self.page.path)
        else:
            if drawn is not None:
                self.show(drawn)

    async def on_action(self, event: Any) -> None:
        message = event.args if isinstance(event.args, Mapping) else {}
        name = str(message.get("action", ""))
        outcome: tuple[bool, str | Told] | None
        try:
            fields = fields_of(message.get("fields"))
            outcome = await run.io_bound(act, self.desk, self.page, self.visit, name, fields)
        except SessionEndedError:
            self.end()
            return
        except bodies.BodyError:
            outcome = (False, "This text cannot be stored.")
        except Exception:
            _logger.exception(ACTION_FAILED, action=name if name in self.page.actions else "unknown")
            outcome = (False, "This did not work; the node's log says why.")
        if outcome is not None:
            done, said = outcome
            number = message.get("number")
            number = number if isinstance(number, int) else 0
            said = said.message if isinstance(said, Told) else said
            ui.run_javascript(f"cloisterDone({number}, {json.dumps(done)}, {json.dumps(said)})")
        await self.refresh()

    def end(self) -> None:
        self.desk.sockets.close(self.visit.session)


_HEAD: Final = (
    '<link rel="stylesheet" href="/static/panel.css">'
    '<script src="/static/theme.js"></script>'
    '<script defer src="/static/panel.js"></script>'
    '<script defer src="/static/draw.js"></script>'
)


def register(desk: Desk) -> None:
    """Register all pages with the framework, once in a process."""
    for page in PAGES:
        ui.page(page.path, title=f"{page.title} · Cloister", response_timeout=30)(_builder(page, desk))


def _builder(page: Page[Any], desk: Desk) -> Callable[[Request], Any]:
    async def build(request: Request) -> Response | None:
        visit: Visit = request.scope[VISIT]
        query = Query({**request.query_params, **request.path_params})
        if not visit.viewer.may(page.right):
            return problem(403, "You do not have the right to see this page.")
        try:
            drawn = await run.io_bound(render, desk, page, query, visit.token)
        except SessionEndedError:
            return problem(401, "Sign in first.")
        except Exception:
            _logger.exception(PAGE_FAILED, page=page.path)
            return problem(500, "The page could not be read; the node's log says why.")
        if drawn is None:
            return problem(503, "The node is stopping.")
        if "body" in drawn.sections and drawn.sections == not_there():
            ui.context.client.status_code = 404
        _Open(desk, page, query, visit).build(drawn)
        return None

    return build


_NOT_THERE: Final = nothing(
    "There is nothing here.", "It may have been removed. ", link("/", "Go to the home page")
)


def not_there() -> Drawing:
    """Draw what stands where a page's row is gone."""
    return {"head": page_head("Not found"), "body": el("div", _NOT_THERE, class_="alone")}


def belongs(client_id: str, session: str) -> bool:
    """Whether an open page was built for this session; one that is gone may be asked for, to be rebuilt."""
    client = Client.instances.get(client_id)
    if client is None:
        return bool(client_id)
    visit = client.request.scope.get(VISIT)
    return visit is not None and visit.session == session


def harden() -> None:
    """Close what the framework leaves open: events of other sockets, text that browsers send to our log."""
    handlers = core.sio.handlers["/"]
    for event in ("event", "javascript_response", "ack"):
        handlers[event] = _only_own(handlers[event])
    handlers["log"] = _drop


def _only_own(handler: Callable[..., Any]) -> Callable[..., Any]:
    def checked(sid: str, message: object) -> Any:
        client = message.get("client_id") if isinstance(message, Mapping) else None
        if not isinstance(client, str) or client not in core.sio.rooms(sid):
            return None
        return handler(sid, message)

    return checked


def _drop(sid: str, message: object) -> None:
    del sid, message
