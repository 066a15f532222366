"""Jobs: the work of both zones, with its reasons, and a retry for what has stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import case, func, select

from appliance import work
from appliance.auth.rights import Right
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalJob, Result, StudyRevision
from appliance.db.engine import reading, writing
from appliance.db.peers import Delivery
from appliance.web.panel import research, study_rows
from appliance.web.panel.job_names import JOB_NAMES
from appliance.web.panel.markup import count, el, join, when
from appliance.web.panel.page import Action, ActionRefusedError, Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    button,
    card,
    filters,
    link,
    nothing,
    page_head,
    pager,
    select_field,
    stack,
    table,
)
from appliance.web.panel.run import progress_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 50
RETRIED: Final = "job.retried"
_STATE_WORDS: Final = {"failed": "will retry", "dead": "stopped"}
_URGENCY: Final = case(
    {WorkState.DEAD: 0, WorkState.FAILED: 1, WorkState.RUNNING: 2, WorkState.QUEUED: 3},
    value=ClinicalJob.state,
    else_=4,
)


@dataclass(frozen=True)
class JobRow:
    """A piece of work; ``study_id`` is what a clinical one is about, ``table`` where a research one lies."""

    id: str
    table: str  # clinical, round, job
    kind: str
    study_id: str | None
    state: str
    reason: str | None
    attempts: int
    max_attempts: int
    progress: str
    next_try_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class JobsView:
    """One page of clinical jobs, and the newest of the research zone."""

    rows: tuple[JobRow, ...]
    research_rows: tuple[JobRow, ...] | None  # None when the zone does not answer
    total: int
    page: int
    pages: int
    state: str
    kind: str
    dead: int
    can_retry: bool


def load(desk: Desk, viewer: Viewer, query: Query) -> JobsView:
    """Read jobs of both zones: what needs a person first, then the newest."""
    state = query.text("state") if query.text("state") in set(WorkState) else ""
    kind = query.text("kind", length=48)
    conditions = [ClinicalJob.state == state] if state else []
    if kind:
        conditions.append(ClinicalJob.kind == kind)
    with reading(desk.zone.engine) as session:
        total = session.scalar(select(func.count()).select_from(ClinicalJob).where(*conditions)) or 0
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        jobs = session.scalars(
            select(ClinicalJob)
            .where(*conditions)
            .order_by(_URGENCY, ClinicalJob.updated_at.desc(), ClinicalJob.id)
            .limit(PAGE_SIZE)
            .offset((page - 1) * PAGE_SIZE)
        ).all()
        rows = _rows(session, jobs)
        dead = session.scalar(
            select(func.count()).select_from(ClinicalJob).where(ClinicalJob.state == WorkState.DEAD)
        )
    return JobsView(
        rows=rows,
        research_rows=_research_rows(desk, state),
        total=total,
        page=page,
        pages=pages,
        state=state,
        kind=kind,
        dead=dead or 0,
        can_retry=Right.RETRY_JOBS in viewer.rights,
    )


def _rows(session: Session, found: Sequence[ClinicalJob]) -> tuple[JobRow, ...]:
    subjects = [job.subject_id for job in found]
    studies = {
        str(id_): str(study_id)
        for id_, study_id in session.execute(
            select(StudyRevision.id, StudyRevision.study_id).where(StudyRevision.id.in_(subjects))
        )
    }
    studies |= {
        str(id_): str(study_id)
        for id_, study_id in session.execute(
            select(Delivery.id, Result.study_id)
            .join(Result, Delivery.result_id == Result.id)
            .where(Delivery.id.in_(subjects))
        )
    }
    return tuple(
        JobRow(
            id=job.id,
            table="clinical",
            kind=job.kind,
            study_id=studies.get(job.subject_id),
            state=job.state,
            reason=job.reason,
            attempts=job.attempts,
            max_attempts=job.max_attempts,
            progress=progress_words(job.progress) if job.progress else "",
            next_try_at=job.next_try_at,
            updated_at=job.updated_at,
        )
        for job in found
    )


def _research_rows(desk: Desk, state: str) -> tuple[JobRow, ...] | None:
    found = research.ask(lambda: desk.research.jobs(state=state or None, limit=PAGE_SIZE))
    if found is None:
        return None
    return tuple(
        JobRow(
            id=job.id,
            table=job.table,
            kind=job.kind,
            study_id=None,
            state=job.state,
            reason=job.reason,
            attempts=job.attempts,
            max_attempts=job.max_attempts,
            progress=progress_words(job.progress) if job.progress else "",
            next_try_at=job.next_try_at,
            updated_at=job.updated_at,
        )
        for job in found
    )


def draw(view: JobsView, viewer: Viewer) -> Drawing:
    """Draw filters and the jobs of both zones."""
    del viewer
    states = [("", "All states"), *((s.value, _STATE_WORDS.get(s, s.value)) for s in WorkState)]
    kinds = [
        ("", "All work"),
        *((kind, JOB_NAMES[kind]) for kind in ("deidentify", "infer", "deliver", "fetch", "erase")),
    ]
    form = filters(
        "/jobs",
        select_field("state", "State", states, view.state, prefix=""),
        select_field("kind", "Clinical work", kinds, view.kind, prefix=""),
    )
    lead = "The node tries again by itself; what it gave up on waits here for a person."
    research_card = (
        research.away()
        if view.research_rows is None
        else table(
            "Research zone",
            _columns("Row"),
            _cells(view.research_rows, view),
            empty=nothing("No round or export has run here."),
        )
    )
    return {
        "head": page_head("Jobs", el("span", f"{view.dead} stopped", class_="muted"), lead=lead),
        "filter": form,
        "clinical": card(
            "Clinical zone",
            table("Clinical zone", _columns("Study"), _cells(view.rows, view), empty=_empty(view)),
            pager("/jobs", view.page, view.pages, state=view.state, kind=view.kind),
            aside=count(view.total, "job"),
        ),
        "research": card("Research zone", research_card),
    }


def _columns(subject: str) -> tuple[Column, ...]:
    return (
        Column("Work", "tight"),
        Column(subject, "tight"),
        Column("State", "wide"),
        Column("Attempts", "number"),
        Column("Last change", "tight"),
        Column("", "tight"),
    )


def _cells(rows: tuple[JobRow, ...], view: JobsView) -> list[tuple[object, ...]]:
    return [
        (
            JOB_NAMES.get(row.kind, row.kind),
            link(f"/studies/{row.study_id}", study_rows.study_name(row.study_id))
            if row.study_id
            else el("code", row.id[:8]),
            _state(row),
            row.attempts if row.kind == "fetch" else f"{row.attempts} of {row.max_attempts}",
            when(row.updated_at, seconds=True),
            _retry_button(row)
            if view.can_retry and row.state in {WorkState.DEAD, WorkState.FAILED}
            else None,
        )
        for row in rows
    ]


def _state(row: JobRow) -> Markup:
    again = None
    if row.state == WorkState.FAILED and row.next_try_at is not None:
        again = join(("Next try ", when(row.next_try_at, seconds=True)))
    under_way = row.progress if row.state == WorkState.RUNNING else None
    notes = (el("span", note, class_="reason") for note in (row.reason, under_way, again) if note)
    return stack(badge(row.state), *notes)


def _retry_button(row: JobRow) -> Markup:
    name = JOB_NAMES.get(row.kind, row.kind)
    return el(
        "div",
        button("retry", "Retry", described=f"{name} {row.id[:8]}", table=row.table, id=row.id),
        class_="buttons",
    )


def _empty(view: JobsView) -> Markup:
    if view.state or view.kind:
        return nothing("No job matches the filter.", link("/jobs", "Show all jobs"))
    return nothing(
        "No work yet.", "Each assembled study brings its jobs: de-identification, inference, delivery."
    )


def retry(desk: Desk, viewer: Viewer, fields: Mapping[str, str]) -> str:
    """Queue a stopped piece of work again, with all its attempts."""
    table_name, row_id = fields.get("table", ""), fields.get("id", "")
    if table_name in {"round", "job"}:
        retried = research.act(lambda: desk.research.retry(table_name, row_id, viewer.user_id))
    else:
        retried = _retry_clinical(desk, viewer, row_id)
    if not retried:
        raise ActionRefusedError("This job has moved on by itself; nothing to retry.")
    return "Queued again."


def _retry_clinical(desk: Desk, viewer: Viewer, row_id: str) -> bool:
    with writing(desk.zone.engine) as session:
        job = session.get(ClinicalJob, row_id)
        if job is None or not work.retry(session, ClinicalJob, row_id):
            return False
        desk.zone.ledger.append(session, kind=RETRIED, subject_id=row_id, actor=viewer.user_id)
        kind = job.kind
    desk.zone.wake(kind, row_id)
    return True


PAGE: Final = Page(
    path="/jobs",
    title="Jobs",
    right=Right.VIEW,
    load=load,
    draw=draw,
    actions={"retry": Action(Right.RETRY_JOBS, retry)},
)
