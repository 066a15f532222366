"""Studies: all that were received, with their states and reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, func, or_, select

from appliance.auth.rights import Right
from appliance.db.clinical import QuarantineItem, Result, Study, StudyRevision, StudyState
from appliance.db.engine import reading
from appliance.web.panel import study_rows
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    filters,
    link,
    nothing,
    page_head,
    pager,
    select_field,
    stack,
    table,
    text_field,
)

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 50


@dataclass(frozen=True)
class StudyRow:
    """One study in the list."""

    id: str
    identity: study_rows.Identity | None
    modalities: str
    calling_ae_title: str
    state: str
    reason: str | None
    instance_count: int
    revision: int
    deidentification_state: str
    result_count: int
    open_quarantine: int
    last_received_at: datetime


@dataclass(frozen=True)
class StudiesView:
    """One page of the list, and how it was asked for."""

    rows: tuple[StudyRow, ...]
    total: int
    page: int
    pages: int
    search: str
    state: str
    modality: str
    known_modalities: tuple[str, ...]
    sees_identity: bool
    ae_title: str
    port: int


def load(desk: Desk, viewer: Viewer, query: Query) -> StudiesView:
    """Read one page of the list, newest first."""
    search, state, modality = query.text("q"), query.text("state"), query.text("modality", length=16)
    sees = Right.VIEW_IDENTITY in viewer.rights
    conditions = _conditions(search, state, modality, sees_identity=sees)
    with reading(desk.zone.engine) as session:
        total = session.scalar(select(func.count()).select_from(Study).where(*conditions)) or 0
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        return StudiesView(
            rows=_rows(session, viewer, conditions, page),
            total=total,
            page=page,
            pages=pages,
            search=search,
            state=state,
            modality=modality,
            known_modalities=_known_modalities(session),
            sees_identity=sees,
            ae_title=desk.settings.dicom.ae_title,
            port=desk.dicom_port(),
        )


def _conditions(search: str, state: str, modality: str, *, sees_identity: bool) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if state in set(StudyState):
        found.append(Study.state == state)
    if modality:
        found.append(Study.modalities.contains(modality, autoescape=True))
    if search:
        fields = [Study.id.startswith(search.lower().removeprefix("study "), autoescape=True)]
        if sees_identity:
            fields += [
                Study.patient_id.icontains(search, autoescape=True),
                Study.patient_name.icontains(search.replace(", ", "^"), autoescape=True),
                Study.study_instance_uid == search,
            ]
        found.append(or_(*fields))
    return found


def _rows(
    session: Session, viewer: Viewer, conditions: list[ColumnElement[bool]], page: int
) -> tuple[StudyRow, ...]:
    studies = session.scalars(
        select(Study)
        .where(*conditions)
        .order_by(Study.last_received_at.desc(), Study.id)
        .limit(PAGE_SIZE)
        .offset((page - 1) * PAGE_SIZE)
    ).all()
    ids = [study.id for study in studies]
    deidentified = _deidentified(session, ids)
    results = _counts(
        session,
        select(Result.study_id, func.count()).where(Result.study_id.in_(ids)).group_by(Result.study_id),
    )
    stopped = _counts(
        session,
        select(QuarantineItem.study_id, func.count())
        .where(QuarantineItem.study_id.in_(ids), QuarantineItem.resolved_at.is_(None))
        .group_by(QuarantineItem.study_id),
    )
    return tuple(
        StudyRow(
            id=study.id,
            identity=study_rows.identity(study, viewer),
            modalities=study_rows.modalities(study.modalities),
            calling_ae_title=study.calling_ae_title,
            state=study.state,
            reason=study.reason,
            instance_count=study.instance_count,
            revision=study.revision,
            deidentification_state=deidentified.get(study.id, ""),
            result_count=results.get(study.id, 0),
            open_quarantine=stopped.get(study.id, 0),
            last_received_at=study.last_received_at,
        )
        for study in studies
    )


def _deidentified(session: Session, ids: list[str]) -> dict[str, str]:
    """Return the state of each study's latest revision."""
    statement = select(StudyRevision).where(StudyRevision.study_id.in_(ids)).order_by(StudyRevision.number)
    return {row.study_id: row.deidentification_state for row in session.scalars(statement)}


def _counts(session: Session, statement: object) -> dict[str, int]:
    return {str(key): int(number) for key, number in session.execute(statement)}  # type: ignore[call-overload]


def _known_modalities(session: Session) -> tuple[str, ...]:
    values = session.scalars(select(Study.modalities).distinct().limit(200))
    return tuple(sorted({part for value in values for part in value.split("\\") if part}))


def draw(view: StudiesView, viewer: Viewer) -> Drawing:
    """Draw filters and list."""
    del viewer
    hint = "Patient, ID or study number" if view.sees_identity else "Study number"
    form = filters(
        "/studies",
        text_field(
            "q",
            "Search",
            kind="search",
            value=view.search,
            required=False,
            placeholder=hint,
            maxlength=100,
            prefix="",
        ),
        select_field(
            "state",
            "State",
            [("", "All states"), *((s.value, s.value.capitalize()) for s in StudyState)],
            view.state,
            prefix="",
        ),
        select_field(
            "modality",
            "Modality",
            [("", "All"), *((m, m) for m in view.known_modalities)],
            view.modality,
            prefix="",
        ),
    )
    lead = None if view.sees_identity else "Patient identities are hidden: they need the right to view them."
    return {
        "head": page_head(
            "Studies", el("span", count(view.total, "study", "studies"), class_="muted"), lead=lead
        ),
        "filter": form,
        "list": _list(view),
    }


def _list(view: StudiesView) -> Markup:
    columns = (
        Column("Study", "wide"),
        Column("Modality", "tight"),
        Column("From", "tight"),
        Column("Instances", "number"),
        Column("State", "wide"),
        Column("De-identified", "tight"),
        Column("Results", "number"),
        Column("Last received", "tight"),
    )
    rows = [
        (
            _name(row),
            row.modalities or DASH,
            row.calling_ae_title or DASH,
            row.instance_count,
            _state(row),
            badge(row.deidentification_state)
            if row.deidentification_state
            else el("span", "not yet", class_="none"),
            row.result_count or el("span", DASH, class_="none"),
            when(row.last_received_at),
        )
        for row in view.rows
    ]
    whole = table("Studies", columns, rows, empty=_empty(view))
    return el(
        "div",
        whole,
        pager("/studies", view.page, view.pages, q=view.search, state=view.state, modality=view.modality),
        class_="alone",
    )


def _empty(view: StudiesView) -> Markup:
    if view.search or view.state or view.modality:
        return nothing("No study matches the filter.", link("/studies", "Show all studies"))
    return nothing(
        "No study has arrived yet.",
        "Add the PACS under ",
        link("/peers", "Peers"),
        f", then send a study to AE title {view.ae_title}, port {view.port}. ",
        "A caller that is not known yet shows up there, too.",
    )


def _name(row: StudyRow) -> Markup:
    if row.identity is None:
        return link(f"/studies/{row.id}", study_rows.study_name(row.id))
    name = row.identity.patient_name or "No patient name"
    rest = " · ".join(
        part
        for part in (row.identity.patient_id, row.identity.study_date, row.identity.study_description)
        if part
    )
    return stack(link(f"/studies/{row.id}", name), el("small", rest))


def _state(row: StudyRow) -> Markup:
    again = f"revision {row.revision}" if row.revision > 1 else None
    stopped = f"{count(row.open_quarantine, 'item')} in quarantine" if row.open_quarantine else None
    note = row.reason or " · ".join(part for part in (again, stopped) if part)
    return stack(badge(row.state), el("span", note, class_="reason") if note else None)


PAGE: Final = Page(path="/studies", title="Studies", right=Right.VIEW, load=load, draw=draw)
