"""Decisions on quarantined items that hold from now on, and those that wait for a second person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import or_, select

from appliance import quarantine
from appliance.auth import users
from appliance.db.clinical import Decision, DecisionState
from appliance.db.engine import writing
from appliance.review import decisions, scopes
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import ActionRefusedError
from appliance.web.panel.parts import Ask, Column, badge, button, card, link, stack, table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

LIMIT: Final = 100
_MIDWAY: Final = {
    quarantine.FILING: "being filed",
    quarantine.PROPOSED: "proposed",
    quarantine.RELEASING: "leaving",
}
_ENDS: Final = frozenset({quarantine.FILED, quarantine.RELEASED})
_DISCARDED: Final = frozenset({quarantine.DISCARDING, quarantine.GONE})


@dataclass(frozen=True)
class DecisionRow:
    """A decision that holds, or waits for a second person."""

    id: str
    item_id: str
    reason_code: str
    outcome: str
    scope: str
    state: str
    machine: str
    boxes: int
    decided_by: str
    confirmed_by: str
    decided_at: datetime | None


def read(session: Session) -> tuple[DecisionRow, ...]:
    """Read what waits for a second person, and what holds for more than one instance; newest first."""
    wide = (Decision.state == DecisionState.STANDING) & (Decision.scope != scopes.INSTANCE)
    rows = session.scalars(
        select(Decision)
        .where(or_(Decision.state == DecisionState.PROPOSED, wide))
        .order_by(Decision.decided_at.desc(), Decision.id)
        .limit(LIMIT)
    ).all()
    people = users.names(session)
    return tuple(
        DecisionRow(
            id=row.id,
            item_id=row.quarantine_item_id,
            reason_code=row.reason_code,
            outcome=row.outcome,
            scope=row.scope,
            state=row.state,
            machine=f"{row.machine.get('manufacturer', '')} {row.machine.get('model', '')}".strip(),
            boxes=len(row.verdict.get("boxes", ())),
            decided_by=people.get(row.decided_by or "", ""),
            confirmed_by=people.get(row.confirmed_by or "", ""),
            decided_at=row.decided_at,
        )
        for row in rows
    )


def draw(rows: tuple[DecisionRow, ...], *, can_review: bool) -> Markup | None:
    """Draw them; nothing where there are none."""
    if not rows:
        return None
    columns = (
        Column("Decision", "wide"),
        Column("For", "wide"),
        Column("By", "tight"),
        Column("Since", "tight"),
        Column("State", "tight"),
        Column("", "tight"),
    )
    drawn = [
        (
            stack(link(f"/quarantine/{row.item_id}", _words(row)), el("small", row.reason_code)),
            stack(row.scope, el("small", row.machine) if row.machine else None),
            " and ".join(name for name in (row.decided_by, row.confirmed_by) if name) or DASH,
            when(row.decided_at),
            badge("pending", text="proposed") if row.state == DecisionState.PROPOSED else badge("active"),
            _withdraw(row) if can_review and row.state == DecisionState.STANDING else None,
        )
        for row in rows
    ]
    return card("Decisions", table("Decisions in force, and those that wait", columns, drawn))


def _words(row: DecisionRow) -> str:
    if row.outcome == scopes.KEEP:
        return "stays inside"
    return f"is released, {count(row.boxes, 'box', 'boxes')} blacked out" if row.boxes else "is released"


def _withdraw(row: DecisionRow) -> Markup:
    ask = Ask("Withdraw this decision? What comes from now on waits for a person again; what left has left.")
    return button("withdraw", "Withdraw", ask=ask, id=row.id, described=row.reason_code)


def withdraw(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """End a decision."""
    try:
        with writing(desk.zone.engine) as session:
            at = decisions.Desk(session, desk.zone.ledger, viewer.user_id)
            decisions.withdraw(at, fields.get("id", ""))
    except decisions.DecisionError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    return "Withdrawn: what comes from now on waits for a person."


def state_of(resolved_at: datetime | None, resolution: str) -> Markup:
    """Draw where an item stands."""
    word, _, why = resolution.partition(":")
    if word in _MIDWAY:
        return badge("pending" if word == quarantine.PROPOSED else "queued", text=_MIDWAY[word])
    if resolved_at is None:
        return badge("open")
    if word in _DISCARDED:
        return stack(badge("discarded"), el("small", quarantine.WHY[why]) if why in quarantine.WHY else None)
    return badge(word if word in _ENDS else "reviewed")
