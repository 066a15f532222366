"""One quarantined item: what it is, what would leave if it were released, and a person's decision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from anonymizer import verdicts
from appliance.auth.rights import Right
from appliance.db.clinical import ClinicalJob, Decision, QuarantineItem
from appliance.db.engine import reading, writing
from appliance.db.people import User
from appliance.review import decisions, folders, scopes
from appliance.review.decisions import DecisionError
from appliance.web.panel import review_parts
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, NotThereError, Page, Query
from appliance.web.panel.review_view import Line, Machine, Others, Picture, ReviewView, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

_BOX: Final = re.compile(r"\s*(\d{1,5})[\s,;]+(\d{1,5})[\s,;]+(\d{1,5})[\s,;]+(\d{1,5})\s*")
_AT: Final = "at-"


def load(desk: Desk, viewer: Viewer, query: Query) -> ReviewView:
    """Read one item; values and pictures only for those who may see identities."""
    with reading(desk.zone.engine) as session:
        item = session.get(QuarantineItem, query.text("item_id"))
        if item is None:
            raise NotThereError("item: no such row")
        place = scopes.place_of(session, item.instance_id) if item.instance_id else None
        row = session.scalar(
            select(Decision)
            .where(Decision.quarantine_item_id == item.id, Decision.state.in_(folders.SHOWN))
            .order_by(Decision.created_at.desc())
            .limit(1)
        )
        trial = None if row is None else _trial(session, row, viewer)
        others = Others(0, 0) if place is None else _others(session, place, item)
    sees = viewer.may(Right.VIEW_IDENTITY)
    return ReviewView(
        id=item.id,
        stage=item.stage,
        reason_code=item.reason_code,
        reason=item.reason,
        study_id=item.study_id,
        calling_ae_title=item.calling_ae_title,
        created_at=item.created_at,
        resolved_at=item.resolved_at,
        resolution=item.resolution,
        machine=None if place is None else _machine(place),
        decidable=item.stage == scopes.STAGE and place is not None,
        can_review=viewer.may(Right.REVIEW_QUARANTINE),
        sees=sees,
        four_eyes=desk.settings.deidentification.four_eyes,
        others=others,
        trial=trial,
        lines=() if row is None or trial is None else _lines(desk, row, sees=sees),
    )


def _machine(place: scopes.Place) -> Machine:
    made = place.machine
    return Machine(made.modality, made.manufacturer, made.model, made.rows, made.columns, named=made.is_named)


def _lines(desk: Desk, row: Decision, *, sees: bool) -> tuple[Line, ...]:
    if row.trial.get("outcome") != decisions.RELEASED:
        return ()
    hidden = {} if sees else {"before": "", "after": ""}
    found = folders.header_of(desk.zone.root, row.study_id, row.id)
    return tuple(Line(**{**line, **hidden}) for line in found)


def _others(session: Session, place: scopes.Place, item: QuarantineItem) -> Others:
    return Others(*(_count(session, place, item, scope) for scope in (scopes.SERIES, scopes.MACHINE)))


def _count(session: Session, place: scopes.Place, item: QuarantineItem, scope: str) -> int:
    found = scopes.waiting(place, item.reason_code, scope).where(QuarantineItem.id != item.id).subquery()
    return session.scalar(select(func.count()).select_from(found)) or 0


def _trial(session: Session, row: Decision, viewer: Viewer) -> Trial:
    trial = row.trial
    failed = ""
    if trial.get("state") == decisions.WAITING:
        key = f"{decisions.REVIEW}:{row.id}:{trial.get('number')}"
        job = session.scalar(select(ClinicalJob).where(ClinicalJob.dedupe_key == key))
        failed = (job.reason or "it failed") if job is not None and job.state == "dead" else ""
    proposer = session.get(User, row.decided_by) if row.decided_by else None
    return Trial(
        decision_id=row.id,
        decision_state=row.state,
        scope=row.scope,
        proposed_by=proposer.name if proposer is not None else "",
        own=row.decided_by == viewer.user_id,
        number=trial.get("number", 0),
        state="failed" if failed else trial.get("state", decisions.WAITING),
        outcome=trial.get("outcome", ""),
        reason_code=trial.get("reason_code", ""),
        reason=failed or trial.get("reason", ""),
        places=tuple(trial.get("places", ())),
        rows=trial.get("rows", 0),
        columns=trial.get("columns", 0),
        pictures=tuple(Picture(frame, _boxes(trial, frame)) for frame in trial.get("frames", ())),
        changes={str(change): int(number) for change, number in trial.get("changes", {}).items()},
        line_count=trial.get("lines", 0),
        drawn=tuple(tuple(box) for box in row.verdict.get("boxes", ())),
        removed=tuple(row.verdict.get("removed", ())),
        standing=tuple(row.verdict.get("standing", ())),
        accepted=tuple(row.verdict.get("accepted", ())),
    )


def _boxes(trial: Mapping[str, Any], frame: int) -> tuple[tuple[int, int, int, int, str], ...]:
    return tuple(
        (left, top, right, bottom, source)
        for left, top, right, bottom, source, where in trial.get("boxes", ())
        if not where or frame in where
    )


def draw(view: ReviewView, viewer: Viewer) -> Drawing:
    """Draw the item."""
    del viewer
    return review_parts.draw(view)


def try_out(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Show what would leave if the item were released so."""
    wanted = {
        "boxes": _boxes_of(fields.get("boxes", "")),
        "removed": _places_of(fields, "remove"),
        "standing": _places_of(fields, "stand"),
    }

    def run(at: decisions.Desk) -> list[str]:
        return [decisions.draft(at, fields.get("item_id", ""), decisions.verdict_of(wanted))]

    _run(desk, viewer, run)
    return "It is being made; what would leave appears here in a moment."


def release(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Release what was shown to leave, or propose it where a second person has to confirm."""
    if not viewer.may(Right.VIEW_IDENTITY):
        raise ActionRefusedError("Not done: only who may see the picture can release it.")
    _run(
        desk,
        viewer,
        lambda at: decisions.decide(
            at, fields.get("decision_id", ""), fields.get("scope", ""), _number_of(fields)
        ),
    )
    if desk.settings.deidentification.four_eyes:
        return "Proposed: it leaves when a second person confirms it."
    return "Released: it leaves in a moment."


def confirm(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Agree to a release that somebody else proposed."""
    if not viewer.may(Right.VIEW_IDENTITY):
        raise ActionRefusedError("Not done: only who may see the picture can release it.")
    _run(desk, viewer, lambda at: decisions.confirm(at, fields.get("decision_id", "")))
    return "Confirmed: it leaves in a moment."


def refuse(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Turn a proposed release down, or take one's own back."""

    def run(at: decisions.Desk) -> list[str]:
        decisions.refuse(at, fields.get("decision_id", ""))
        return []

    _run(desk, viewer, run)
    return "Turned down: the item is open again."


def keep(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Keep inside what a scope holds."""
    kept: list[int] = []

    def run(at: decisions.Desk) -> list[str]:
        kept.append(decisions.keep(at, fields.get("item_id", ""), fields.get("scope", "")))
        return []

    _run(desk, viewer, run)
    return f"Kept inside: {kept[0]} of them now." if kept[0] != 1 else "Kept inside."


def _run(desk: Desk, viewer: Viewer, run: Callable[[decisions.Desk], list[str]]) -> None:
    """Make a decision in one transaction, then wake what it queued."""
    four_eyes = desk.settings.deidentification.four_eyes
    try:
        with writing(desk.zone.engine) as session:
            jobs = run(decisions.Desk(session, desk.zone.ledger, viewer.user_id, four_eyes))
            kinds = {job_id: session.get_one(ClinicalJob, job_id).kind for job_id in jobs}
    except DecisionError as error:
        raise ActionRefusedError(f"Not done: {error}.") from error
    for job_id, kind in kinds.items():
        desk.zone.wake(kind, job_id)


def _number_of(fields: Mapping[str, str]) -> int:
    """Return which trial the person saw; 0, which is none, where that is not said."""
    number = fields.get("number", "")
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 9 else 0


def _boxes_of(text: str) -> list[list[int]]:
    """Read one box a line: left, top, right, bottom."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _BOX.fullmatch(line)
        if match is None:
            raise ActionRefusedError(f"Not done: line {number}: expected left, top, right, bottom in pixels.")
        found.append([int(part) for part in match.groups()])
    return found


def _places_of(fields: Mapping[str, str], wanted: str) -> list[str]:
    return [
        verdicts.place_of(name.removeprefix(_AT))
        for name, value in fields.items()
        if name.startswith(_AT) and value == wanted
    ]


PAGE: Final = Page(
    path="/quarantine/{item_id}",
    title="Review",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={
        "try": Action(Right.REVIEW_QUARANTINE, try_out),
        "release": Action(Right.REVIEW_QUARANTINE, release),
        "confirm": Action(Right.REVIEW_QUARANTINE, confirm),
        "refuse": Action(Right.REVIEW_QUARANTINE, refuse),
        "keep": Action(Right.REVIEW_QUARANTINE, keep),
    },
    menu="/quarantine",
)
