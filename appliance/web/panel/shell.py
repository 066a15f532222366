"""The frame around every page: brand, menu, who is signed in, the dialog and the messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup
from sqlalchemy import func, select

from appliance import alarms, silence
from appliance.auth.rights import Right
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob, QuarantineItem
from appliance.db.engine import reading
from appliance.db.peers import RejectedCaller
from appliance.web.panel.markup import EMPTY, el, join
from appliance.web.panel.parts import badge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.web.desk import Desk, Viewer


def icon(path: str) -> Markup:
    """Draw an icon from path data on a 24 by 24 field."""
    return Markup(
        '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" '
        'stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="{}"></path></svg>'
    ).format(path)


MARK: Final = icon("M3 21h18M5 21V10a7 7 0 0 1 14 0v11M9 21v-9a3 3 0 0 1 6 0v9")
CHECK: Final = icon("M5 12.5l4.5 4.5L19 7.5")
CROSS: Final = icon("M12 7v6M12 17v.01M12 3l9.5 17h-19z")


@dataclass(frozen=True)
class Entry:
    """An entry of the menu."""

    path: str
    title: str
    icon: str
    right: Right = Right.VIEW


_HALF_MOON: Final = "M12 4v16M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 7a5 5 0 0 1 0 10"
_FEDERATION: Final = (
    "M12 8v5M12 13l-5 4M12 13l5 4M12 4a2 2 0 1 0 .01 0M6 17a2 2 0 1 0 .01 0M18 17a2 2 0 1 0 .01 0"
)
_LOCK: Final = "M5 11h14v9H5zM8 11V8a4 4 0 0 1 8 0v3M12 14.5v2.5"
_PEOPLE: Final = (
    "M9 11a3.5 3.5 0 1 0-.01 0M3 20c.5-4 3-6 6-6s5.5 2 6 6M16 5a3 3 0 0 1 0 6M17.5 14.5c2 .8 3.2 2.5 3.5 5.5"
)

MENU: Final[tuple[tuple[str, tuple[Entry, ...]], ...]] = (
    (
        "",
        (
            Entry("/", "Home", "M4 11l8-7 8 7v9h-5v-6H9v6H4z"),
            Entry("/studies", "Studies", "M4 5h16v14H4zM4 9h16M9 9v10"),
            Entry("/results", "Results", "M4 18l5-7 4 4 3-5 4 8zM4 4h16v16H4z"),
        ),
    ),
    (
        "Learning",
        (
            Entry("/federation", "Federation", _FEDERATION),
            Entry("/models", "Models", "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5"),
        ),
    ),
    (
        "Operation",
        (
            Entry("/jobs", "Jobs", "M5 6h14M5 12h14M5 18h9"),
            Entry("/quarantine", "Quarantine", "M12 3l8 3v6c0 5-3.5 8-8 9-4.5-1-8-4-8-9V6zM12 8v5M12 16v.01"),
            Entry("/regions", "Text regions", "M4 5h16v14H4zM7 8h10v3H7zM7 15h5"),
            Entry("/deliveries", "Deliveries", "M3 12h13M11 6l6 6-6 6M20 5v14"),
            Entry("/peers", "Peers", "M3 5h8v6H3zM13 13h8v6h-8zM7 11v5h6"),
            Entry("/sources", "Sources", "M4 19h16M6 16v-5M10 16V6M14 16v-8M18 16v-3"),
            Entry("/fetch", "Fetch", "M12 4v11M7.5 10.5L12 15l4.5-4.5M5 19h14"),
            Entry("/rules", "Rules", "M4 6h6M4 12h6M4 18h6M14 6h6l-3 4v6l-2 2v-8z"),
            Entry("/retention", "Retention", "M12 7v5l3 2M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16z"),
        ),
    ),
    (
        "Record",
        (
            Entry("/ledger", "Ledger", "M6 3h12v18H6zM9 8h6M9 12h6M9 16h4"),
            Entry("/vault", "Vault", _LOCK),
            Entry("/users", "Users", _PEOPLE, Right.MANAGE_USERS),
        ),
    ),
)


@dataclass(frozen=True)
class FrameView:
    """What the frame shows beside the page: is the node well, where does something wait."""

    node: str
    well: bool
    problems: int
    waiting: Mapping[str, tuple[int, str]]  # path -> number, tone


def load(desk: Desk) -> FrameView:
    """Read what waits for a person."""
    health = desk.health()
    with reading(desk.zone.engine) as session:
        dead = (
            session.scalar(
                select(func.count()).select_from(ClinicalJob).where(ClinicalJob.state == WorkState.DEAD)
            )
            or 0
        )
        stopped = (
            session.scalar(
                select(func.count()).select_from(QuarantineItem).where(QuarantineItem.resolved_at.is_(None))
            )
            or 0
        )
        callers = session.scalar(select(func.count()).select_from(RejectedCaller)) or 0
        unseen = sum(not alarm.acknowledged_by for alarm in alarms.still_open(session, silence.SILENCE))
    waiting = {
        "/jobs": (dead, "bad"),
        "/quarantine": (stopped, ""),
        "/peers": (callers, ""),
        "/sources": (unseen, "bad"),
    }
    return FrameView(
        node=desk.settings.name,
        well=health.well,
        problems=sum(not check.ok for check in health.checks),
        waiting={path: value for path, value in waiting.items() if value[0]},
    )


def top(view: FrameView, viewer: Viewer) -> Markup:
    """Draw the bar at the top."""
    brand = el(
        "a",
        MARK,
        "Cloister",
        el("small", view.node),
        href="/",
        class_="brand",
        aria_label=f"Cloister, {view.node}: home",
    )
    state = badge("well") if view.well else badge("needs attention", text=f"{view.problems} to look at")
    sign_out = el(
        "form", el("button", "Sign out", type="submit", class_="button"), method="post", action="/sign-out"
    )
    menu = _icon_button("menu-button", "Menu", "M4 7h16M4 12h16M4 17h16", aria_expanded="false")
    theme = _icon_button("theme-button", "Switch between light and dark", _HALF_MOON)
    right = el(
        "div",
        el("a", state, href="/"),
        el("span", viewer.name, class_="who"),
        theme,
        sign_out,
        class_="right",
    )
    return join((menu, brand, right))


def _icon_button(id_: str, label: str, path: str, **attributes: object) -> Markup:
    return el(
        "button", icon(path), type="button", id=id_, class_="icon-button", aria_label=label, **attributes
    )


def side(view: FrameView, viewer: Viewer, current: str) -> Markup:
    """Draw the menu."""
    parts: list[Markup] = []
    for title, entries in MENU:
        allowed = [entry for entry in entries if viewer.may(entry.right)]
        if allowed and title:
            parts.append(el("h3", title))
        parts += [_entry(entry, view, current) for entry in allowed]
    return join(parts)


def _entry(entry: Entry, view: FrameView, current: str) -> Markup:
    number, tone = view.waiting.get(entry.path, (0, ""))
    waiting = (
        el("span", number, class_=f"count {tone}".strip(), title="waits for a person") if number else EMPTY
    )
    lit = "page" if entry.path == current else None
    return el("a", icon(entry.icon), el("span", entry.title), waiting, href=entry.path, aria_current=lit)


def furniture() -> Markup:
    """Draw what every page has once and never changes: the confirmation dialog and the messages."""
    reason = el(
        "label",
        el("span", "Reason"),
        el("input", type="text", maxlength="200", autocomplete="off"),
        class_="field",
        data_slot="reason",
        hidden=True,
    )
    buttons = el(
        "div",
        el("button", "Cancel", type="button", class_="button", data_closes="confirm"),
        el("button", "OK", type="submit", class_="button primary"),
        class_="buttons",
    )
    form = el(
        "form", el("p", "", data_slot="question", id="confirm-question"), reason, buttons, id="confirm-form"
    )
    dialog = el("dialog", form, id="confirm", aria_labelledby="confirm-question")
    return join((dialog, el("div", "", id="toast", role="status", aria_live="polite")))
