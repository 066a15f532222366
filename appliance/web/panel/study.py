"""One study: its series, its revisions and where each went, what was stopped and why, its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import disputes
from appliance.auth.rights import Right
from appliance.db.clinical import Instance, QuarantineItem, Series, Study, StudyState
from appliance.db.engine import reading
from appliance.web.panel import study_actions, study_journey, study_results, study_rows
from appliance.web.panel.markup import DASH, count, el, size, when
from appliance.web.panel.page import Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import (
    Ask,
    Column,
    badge,
    button,
    card,
    code,
    facts,
    grid,
    link,
    nothing,
    page_head,
    stack,
    table,
)
from appliance.web.viewer import address_of

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class SeriesRow:
    """A series of the study."""

    id: str
    modality: str
    body_part_examined: str
    instance_count: int
    size_bytes: int


@dataclass(frozen=True)
class StoppedRow:
    """Something of the study that lies in quarantine."""

    id: str
    stage: str
    reason_code: str
    reason: str
    created_at: datetime
    resolved_at: datetime | None


@dataclass(frozen=True)
class StudyView:
    """Everything that is known of a study."""

    id: str
    identity: study_rows.Identity | None
    modalities: str
    calling_ae_title: str
    state: str
    reason: str | None
    complete: bool
    on_hold: bool
    can_work: bool
    can_route: bool
    can_hold: bool
    can_review: bool
    viewer_address: str  # empty: there is no viewer for this person
    disputed: int  # instances in quarantine that say otherwise whose study it is
    instance_count: int
    first_received_at: datetime
    last_received_at: datetime
    series: tuple[SeriesRow, ...]
    revisions: tuple[study_journey.RevisionRow, ...]
    stopped: tuple[StoppedRow, ...]
    results: tuple[study_results.ResultRow, ...]


def load(desk: Desk, viewer: Viewer, query: Query) -> StudyView:
    """Read one study."""
    with reading(desk.zone.engine) as session:
        study = session.get(Study, query.text("study_id"))
        if study is None:
            raise NotThereError("study: no such row")
        return StudyView(
            id=study.id,
            identity=study_rows.identity(study, viewer),
            modalities=study_rows.modalities(study.modalities),
            calling_ae_title=study.calling_ae_title,
            state=study.state,
            reason=study.reason,
            complete=study.complete,
            on_hold=study.on_hold,
            can_work=Right.RETRY_JOBS in viewer.rights,
            can_route=Right.MANAGE_PEERS in viewer.rights,
            can_hold=Right.MANAGE_RETENTION in viewer.rights,
            can_review=Right.REVIEW_QUARANTINE in viewer.rights,
            viewer_address=address_of(desk, viewer, study.study_instance_uid),
            disputed=disputes.waiting(session, study.id),
            instance_count=study.instance_count,
            first_received_at=study.first_received_at,
            last_received_at=study.last_received_at,
            series=_series(session, study.id),
            revisions=study_journey.read(session, study.id),
            stopped=_stopped(session, study.id),
            results=study_results.read(session, study.id),
        )


def _series(session: Session, study_id: str) -> tuple[SeriesRow, ...]:
    statement = (
        select(Series, func.count(Instance.id), func.coalesce(func.sum(Instance.size_bytes), 0))
        .outerjoin(Instance)
        .where(Series.study_id == study_id)
        .group_by(Series.id)
        .order_by(Series.modality, Series.id)
    )
    return tuple(
        SeriesRow(series.id, series.modality, series.body_part_examined, int(number), int(total))
        for series, number, total in session.execute(statement)
    )


def _stopped(session: Session, study_id: str) -> tuple[StoppedRow, ...]:
    items = session.scalars(
        select(QuarantineItem)
        .where(QuarantineItem.study_id == study_id)
        .order_by(QuarantineItem.created_at.desc())
        .limit(200)
    )
    return tuple(
        StoppedRow(item.id, item.stage, item.reason_code, item.reason, item.created_at, item.resolved_at)
        for item in items
    )


def draw(view: StudyView, viewer: Viewer) -> Drawing:
    """Draw the study."""
    links = study_actions.links(view.id, viewer)
    title = (view.identity.patient_name if view.identity else "") or study_rows.study_name(view.id)
    return {
        "head": page_head(
            title, links, _buttons(view), marks=_marks(view), lead=view.reason, back=("/studies", "Studies")
        ),
        "body": grid(
            el(
                "div",
                study_journey.draw(view.revisions),
                study_results.draw(view.results),
                _quarantine(view),
                class_="column",
            ),
            el("div", _facts(view), _series_card(view), class_="column"),
            class_="wide-left",
        ),
    }


def _buttons(view: StudyView) -> Markup:
    """Draw what a person may decide of the study."""
    shown: list[Markup] = []
    if view.viewer_address and view.instance_count:
        shown.append(link(view.viewer_address, "Open in viewer", class_="button"))
    waits = view.state in {StudyState.RECEIVING, StudyState.QUARANTINED}
    if view.can_work and waits and not view.complete:
        ask = Ask("Assemble this study now? What still comes of it makes a new revision.")
        shown.append(button("assemble", "Assemble now", ask=ask, style="primary", study_id=view.id))
    if view.can_route and not waits:
        ask = Ask("Apply today's rules to this study? What it got already is not done twice.")
        shown.append(button("route", "Apply rules again", ask=ask, study_id=view.id))
    if view.can_hold:
        name = ("release", "End hold") if view.on_hold else ("hold", "Hold")
        shown.append(button(*name, described="deletion by retention rules", study_id=view.id))
    if view.can_review and view.disputed:
        shown += _decisions(view)
    return el("div", shown, class_="buttons")


def _decisions(view: StudyView) -> list[Markup]:
    """Draw how a person settles whose study it is."""
    stored, waiting = count(view.instance_count, "instance"), count(view.disputed, "instance")
    keep = Ask(f"Keep the {stored} stored here, and discard the {waiting} in quarantine that say otherwise?")
    take = Ask(
        f"Delete the {stored} stored here with all results, and file the {waiting} from quarantine instead?"
        " Results that were delivered stay where they are."
    )
    return [
        button("keep", "Keep what is stored", ask=keep, study_id=view.id),
        button("take", "Take what is in quarantine", ask=take, style="danger", study_id=view.id),
    ]


def _marks(view: StudyView) -> Markup:
    complete = view.complete and view.state == StudyState.RECEIVING
    return el(
        "span",
        badge(view.state),
        badge("info", tone="info", text="complete") if complete else None,
        badge("held", tone="warn", text="on hold") if view.on_hold else None,
        class_="marks",
    )


def _facts(view: StudyView) -> Markup:
    rows: list[tuple[str, object]] = []
    if view.identity is not None:
        rows += [
            ("Patient ID", view.identity.patient_id or DASH),
            ("Issuer", view.identity.issuer_of_patient_id or DASH),
            ("Study date", view.identity.study_date or DASH),
            ("Description", view.identity.study_description or DASH),
            ("Study UID", code(view.identity.study_instance_uid, length=64)),
        ]
    rows += [
        ("Modality", view.modalities or DASH),
        ("Sent by", view.calling_ae_title or DASH),
        ("Instances", view.instance_count),
        ("First received", when(view.first_received_at, seconds=True)),
        ("Last received", when(view.last_received_at, seconds=True)),
        ("Row", code(view.id, length=32)),
    ]
    hidden = el("p", "Patient identity is hidden: it needs the right to view it.", class_="muted")
    return card("Study", facts(rows), None if view.identity else hidden)


def _series_card(view: StudyView) -> Markup:
    columns = (
        Column("Series", "tight"),
        Column("Body part"),
        Column("Instances", "number"),
        Column("Size", "number"),
    )
    rows = [
        (row.modality or DASH, row.body_part_examined or DASH, row.instance_count, size(row.size_bytes))
        for row in view.series
    ]
    return card(
        "Series", table("Series", columns, rows, compact=True, empty=nothing("No series is filed yet."))
    )


def _quarantine(view: StudyView) -> Markup | None:
    if not view.stopped:
        return None
    columns = (
        Column("Stage", "tight"),
        Column("Reason", "wide"),
        Column("Since", "tight"),
        Column("State", "tight"),
    )
    rows = [
        (
            row.stage,
            stack(link(f"/quarantine/{row.id}", row.reason), el("small", row.reason_code)),
            when(row.created_at),
            badge("reviewed" if row.resolved_at else "open"),
        )
        for row in view.stopped
    ]
    return card("Quarantine", table("Quarantine", columns, rows), aside=link("/quarantine", "All items"))


PAGE: Final = Page(
    path="/studies/{study_id}",
    title="Study",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions=study_actions.ACTIONS,
    menu="/studies",
)
