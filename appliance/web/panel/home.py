"""Home: whether the node is well, at a glance; what arrived today; what waits."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance import sources
from appliance.auth.rights import Right
from appliance.db.base import WorkState, now
from appliance.db.clinical import (
    ClinicalJob,
    Instance,
    ModelState,
    ModelVersion,
    QuarantineItem,
    Result,
    Study,
    StudyRevision,
)
from appliance.db.engine import reading
from appliance.db.peers import Delivery, Peer
from appliance.space import Grade, grade_of
from appliance.web.panel import research, study_rows
from appliance.web.panel.job_names import JOB_NAMES
from appliance.web.panel.markup import DASH, count, el, join, size, when, zone_name
from appliance.web.panel.page import Drawing, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
    card,
    facts,
    grid,
    link,
    meter,
    nothing,
    page_head,
    stack,
    table,
    tile,
    url,
)
from appliance.web.panel.shell import CHECK, CROSS
from appliance.web.panel.sources import draw_alarms

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.federation import views
    from appliance.sources import AlarmRow
    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class CheckRow:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    fix: str


@dataclass(frozen=True)
class QueueRow:
    """How much of one kind of work stands where."""

    kind: str
    queued: int
    running: int
    failed: int
    dead: int


@dataclass(frozen=True)
class Today:
    """What happened since local midnight."""

    since: datetime
    studies: int
    instances: int
    deidentified: int
    quarantined: int
    results: int
    delivered: int


@dataclass(frozen=True)
class RecentStudy:
    """A study that arrived lately."""

    id: str
    identity: study_rows.Identity | None
    modalities: str
    state: str
    last_received_at: datetime


@dataclass(frozen=True)
class HomeView:
    """The node at a glance."""

    checks: tuple[CheckRow, ...]
    today: Today
    queues: tuple[QueueRow, ...]
    recent: tuple[RecentStudy, ...]
    disk_total_bytes: int
    disk_free_bytes: int
    disk_least_bytes: int
    disk_grade: Grade
    peers: int
    serving: tuple[str, ...]
    learning: views.Summary | None
    silent: tuple[AlarmRow, ...]  # that nobody has acknowledged

    @property
    def problems(self) -> tuple[CheckRow, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)


def load(desk: Desk, viewer: Viewer, query: Query) -> HomeView:
    """Read the node's state."""
    del query
    health = desk.health()
    disk = shutil.disk_usage(desk.settings.data_root)
    with reading(desk.zone.engine) as session:
        return HomeView(
            checks=tuple(CheckRow(check.name, check.ok, check.detail, check.fix) for check in health.checks),
            today=_today(session, now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)),
            queues=_queues(session),
            recent=_recent(session, viewer),
            disk_total_bytes=disk.total,
            disk_free_bytes=disk.free,
            disk_least_bytes=desk.settings.dicom.min_free_mib * 2**20,
            disk_grade=grade_of(desk.settings.dicom, desk.settings.data_root),
            peers=session.scalar(select(func.count()).select_from(Peer).where(Peer.enabled)) or 0,
            serving=tuple(
                f"{model.name} {model.version}"
                for model in session.scalars(
                    select(ModelVersion).where(ModelVersion.state == ModelState.ACTIVE)
                )
            ),
            learning=research.ask(desk.research.summary),
            silent=tuple(alarm for alarm in sources.listed_alarms(session) if not alarm.acknowledged_by),
        )


def _today(session: Session, since: datetime) -> Today:
    def number(column: object, *conditions: object) -> int:
        return session.scalar(select(func.count(column)).where(*conditions)) or 0  # type: ignore[arg-type]

    made = StudyRevision.deidentification_state.in_(["released", "partial"])
    return Today(
        since=since,
        studies=number(Study.id, Study.first_received_at >= since),
        instances=number(Instance.id, Instance.received_at >= since),
        deidentified=number(StudyRevision.id, StudyRevision.assembled_at >= since, made),
        quarantined=number(QuarantineItem.id, QuarantineItem.created_at >= since),
        results=number(Result.study_revision_id.distinct(), Result.created_at >= since),
        delivered=number(Delivery.id, Delivery.delivered_at >= since),
    )


def _queues(session: Session) -> tuple[QueueRow, ...]:
    found: dict[str, dict[str, int]] = {"deidentify": {}, "infer": {}, "deliver": {}}
    grouped = session.execute(
        select(ClinicalJob.kind, ClinicalJob.state, func.count()).group_by(
            ClinicalJob.kind, ClinicalJob.state
        )
    )
    for kind, state, number in grouped:
        found.setdefault(kind, {})[state] = number
    return tuple(
        QueueRow(
            kind=kind,
            queued=states.get(WorkState.QUEUED, 0),
            running=states.get(WorkState.RUNNING, 0),
            failed=states.get(WorkState.FAILED, 0),
            dead=states.get(WorkState.DEAD, 0),
        )
        for kind, states in found.items()
    )


def _recent(session: Session, viewer: Viewer) -> tuple[RecentStudy, ...]:
    studies = session.scalars(select(Study).order_by(Study.last_received_at.desc(), Study.id).limit(6))
    return tuple(
        RecentStudy(
            id=study.id,
            identity=study_rows.identity(study, viewer),
            modalities=study_rows.modalities(study.modalities),
            state=study.state,
            last_received_at=study.last_received_at,
        )
        for study in studies
    )


def draw(view: HomeView, viewer: Viewer) -> Drawing:
    """Draw the node at a glance."""
    del viewer
    drawing = {
        "head": page_head("Home", el("span", f"Times are in {zone_name(view.today.since)}", class_="muted")),
        "health": _health(view),
        "silent": draw_alarms(view.silent),
        "today": _tiles(view.today),
        "body": grid(
            el("div", _arrived(view), _queue_card(view), class_="column"),
            el("div", _learning(view), _disk(view), _processes(view), class_="column"),
            class_="wide-left",
        ),
    }
    return {name: section for name, section in drawing.items() if section}


def _health(view: HomeView) -> Markup:
    problems = view.problems
    if not problems:
        words = el(
            "div",
            el("h2", "The node is well"),
            el("p", f"All {len(view.checks)} checks passed: processes, queues, databases, disk."),
        )
        return el("div", el("div", CHECK, class_="light"), words, class_="health", role="status")
    title = "One thing needs attention" if len(problems) == 1 else f"{len(problems)} things need attention"
    passed = f"{len(view.checks) - len(problems)} of {len(view.checks)} checks passed."
    words = el("div", el("h2", title), el("p", passed))
    columns = (Column("What", "tight"), Column("State", "tight"), Column("What to do", "wide"))
    rows = [(badge("bad", tone="bad", text=check.name), check.detail, _fix(check)) for check in problems]
    listed = el("div", table("Problems", columns, rows), class_="problems")
    return el("div", el("div", CROSS, class_="light"), words, listed, class_="health bad", role="status")


def _fix(check: CheckRow) -> Markup:
    if check.name.endswith("jobs"):
        return link(
            url("/jobs", state="dead"), "Open the stopped jobs: each has its reason and a retry button"
        )
    return el("span", check.fix[:1].upper() + check.fix[1:])


def _tiles(today: Today) -> Markup:
    return grid(
        tile("Studies today", today.studies, note=count(today.instances, "instance"), href="/studies"),
        tile("De-identified today", today.deidentified, note="study revisions", href="/studies"),
        tile(
            "Quarantined today",
            today.quarantined,
            note="items, each with a reason",
            href="/quarantine",
            tone="warn" if today.quarantined else "",
        ),
        tile("Read by a model today", today.results, note="study revisions", href="/results"),
        tile("Delivered today", today.delivered, note="DICOM results", href="/results"),
        class_="tiles",
    )


def _arrived(view: HomeView) -> Markup:
    columns = (
        Column("Study", "wide"),
        Column("Modality", "tight"),
        Column("State", "tight"),
        Column("Last received", "tight"),
    )
    rows = [
        (
            link(f"/studies/{row.id}", study_rows.title(row.identity, row.id)),
            row.modalities or DASH,
            badge(row.state),
            when(row.last_received_at),
        )
        for row in view.recent
    ]
    advice = (
        ("Send one from the PACS to this node.",)
        if view.peers
        else ("Start by adding the PACS under ", link("/peers", "Peers"), ".")
    )
    empty = nothing("No study has arrived yet.", *advice)
    return card(
        "Latest studies",
        table("Latest studies", columns, rows, empty=empty),
        aside=link("/studies", "All studies"),
    )


def _queue_card(view: HomeView) -> Markup:
    columns = (
        Column("Work"),
        Column("Waiting", "number"),
        Column("Running", "number"),
        Column("Will retry", "number"),
        Column("Stopped", "number"),
    )
    rows = [_queue_row(row) for row in (*view.queues, *_research_queues(view))]
    return card("Queues", table("Queues", columns, rows, compact=True), aside=link("/jobs", "All jobs"))


def _research_queues(view: HomeView) -> tuple[QueueRow, ...]:
    known = view.learning
    return () if known is None else (QueueRow("train", known.rounds_open, 0, 0, known.rounds_dead),)


def _queue_row(row: QueueRow) -> tuple[object, ...]:
    def number(value: int, tone: str = "") -> Markup:
        if not value:
            return el("span", "0", class_="none")
        return badge(tone, tone=tone, text=str(value)) if tone else el("span", value)

    return (
        JOB_NAMES.get(row.kind, row.kind),
        number(row.queued),
        number(row.running, "info"),
        number(row.failed, "warn"),
        number(row.dead, "bad"),
    )


def _learning(view: HomeView) -> Markup:
    serving = (
        stack(*view.serving)
        if view.serving
        else el("span", "none: ", link("/models", "see the models"), class_="muted")
    )
    if view.learning is None:
        return card(
            "Learning",
            facts([("Serving model", serving), ("Research zone", badge("stopped", text="does not answer"))]),
        )
    known = view.learning
    rows: list[tuple[str, object]] = [
        ("Serving model", serving),
        (
            "Research data",
            f"{count(known.instances, 'instance')} of {count(known.subjects, 'person', 'people')}",
        ),
        (
            "Labels",
            ", ".join(f"{label.name}: {label.positive + label.negative}" for label in known.labels)
            or "none yet",
        ),
        ("Protocols", _protocols(known.protocols_pending)),
        ("Rounds finished", known.rounds_done),
    ]
    return card("Learning", facts(rows), aside=link("/federation", "Federation"))


def _protocols(pending: int) -> Markup:
    if not pending:
        return el("span", "none waits for a decision", class_="muted")
    return link("/federation", badge("pending", text=f"{pending} for you to decide"))


def _disk(view: HomeView) -> Markup:
    used = 1 - view.disk_free_bytes / view.disk_total_bytes if view.disk_total_bytes else 1.0
    tone = {Grade.ENOUGH: "ok", Grade.NO_TRAINING: "warn"}.get(view.disk_grade, "bad")
    text = f"{size(view.disk_free_bytes)} free of {size(view.disk_total_bytes)}"
    note = f"Instances are refused below {size(view.disk_least_bytes)} free."
    if view.disk_grade is not Grade.ENOUGH:
        note = f"Little space: {view.disk_grade.words}. {note}"
    return card("Disk", meter("Used", used, text, tone=tone), el("p", note, class_="muted"))


def _processes(view: HomeView) -> Markup:
    rows = [
        (
            check.name.removeprefix("process ").replace("_", " "),
            badge("ok", tone="ok", text=check.detail)
            if check.ok
            else badge("bad", tone="bad", text=check.detail),
        )
        for check in view.checks
        if check.name.startswith("process ") or check.name.endswith(("redis", "database"))
    ]
    return card("Processes and stores", join([facts(rows)]))


PAGE: Final = Page(path="/", title="Home", right=Right.VIEW, load=load, draw=draw)
