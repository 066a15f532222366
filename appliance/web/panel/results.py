"""Results: what the models said, with the picture, and where it was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from appliance.auth.rights import Right
from appliance.db.clinical import ModelVersion, Result, Study
from appliance.db.engine import reading
from appliance.db.peers import Delivery
from appliance.web.panel import segment_parts, study_rows
from appliance.web.panel.markup import DASH, count, el, when
from appliance.web.panel.page import Drawing, Page, Query
from appliance.web.panel.parts import Column, badge, link, nothing, page_head, pager, stack, table

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer

PAGE_SIZE: Final = 40


@dataclass(frozen=True)
class StudyResult:
    """All results of one model version on one study revision, in one line."""

    result_id: str  # the one to open: the picture where there is one
    picture_id: str | None
    study_id: str
    identity: study_rows.Identity | None
    model: str
    finding: str
    probability: float | None
    positive: bool | None
    shadow: bool
    superseded: bool
    created_at: datetime
    deliveries: tuple[tuple[str, int], ...]  # state, how many
    segments: tuple[segment_parts.SegmentRow, ...] = ()  # of a model that marks them
    deviation: bool = False  # by a model of anomalies, whose marks are no findings


@dataclass(frozen=True)
class ResultsView:
    """One page of results, newest first."""

    rows: tuple[StudyResult, ...]
    total: int
    page: int
    pages: int


def load(desk: Desk, viewer: Viewer, query: Query) -> ResultsView:
    """Read one page of results."""
    group = (Result.study_revision_id, Result.model_version_id)
    with reading(desk.zone.engine) as session:
        groups = select(*group, func.max(Result.created_at).label("newest")).group_by(*group).subquery()
        total = session.scalar(select(func.count()).select_from(groups)) or 0
        pages = max(1, -(-total // PAGE_SIZE))
        page = min(query.number("page"), pages)
        wanted = session.execute(
            select(groups.c.study_revision_id, groups.c.model_version_id)
            .order_by(groups.c.newest.desc())
            .limit(PAGE_SIZE)
            .offset((page - 1) * PAGE_SIZE)
        ).all()
        rows = tuple(_row(session, viewer, revision_id, model_id) for revision_id, model_id in wanted)
    return ResultsView(rows=rows, total=total, page=page, pages=pages)


def _row(session: Session, viewer: Viewer, revision_id: str, model_id: str) -> StudyResult:
    found = session.scalars(
        select(Result)
        .where(Result.study_revision_id == revision_id, Result.model_version_id == model_id)
        .order_by(Result.kind)
    ).all()
    shown = next((result for result in found if result.kind == "sc"), found[0])
    study = session.get_one(Study, shown.study_id)
    model = session.get_one(ModelVersion, model_id)
    states = session.execute(
        select(Delivery.state, func.count())
        .where(Delivery.result_id.in_([result.id for result in found]))
        .group_by(Delivery.state)
        .order_by(Delivery.state)
    )
    return StudyResult(
        result_id=shown.id,
        picture_id=shown.id if shown.kind == "sc" and viewer.may(Right.VIEW_IDENTITY) else None,
        study_id=study.id,
        identity=study_rows.identity(study, viewer),
        model=f"{model.name} {model.version}",
        finding=finding_name(shown.finding),
        probability=shown.probability,
        positive=is_positive(shown),
        shadow=any(result.shadow for result in found),
        superseded=all(result.superseded for result in found),
        created_at=max(result.created_at for result in found),
        deliveries=tuple((str(state), int(number)) for state, number in states),
        segments=segment_parts.read(shown.finding),
        deviation=segment_parts.threshold(shown.finding) is not None,
    )


def finding_name(finding: dict[str, object]) -> str:
    """Return the meaning of a coded finding, or of what was marked."""
    marked = segment_parts.names(segment_parts.read(finding))
    return marked or str(finding.get("meaning") or finding.get("label") or finding.get("code") or "Finding")


def is_positive(result: Result) -> bool | None:
    """Whether the probability reaches the finding's threshold; None when either is unknown."""
    threshold = result.finding.get("threshold")
    if result.probability is None or not isinstance(threshold, int | float):
        return None
    return result.probability >= threshold


def draw(view: ResultsView, viewer: Viewer) -> Drawing:
    """Draw the list."""
    del viewer
    return {
        "head": page_head(
            "Results",
            el("span", count(view.total, "result"), class_="muted"),
            lead="What the models found, as it was sent on. Research use only, never a diagnosis.",
        ),
        "list": el("div", _table(view), pager("/results", view.page, view.pages), class_="alone"),
    }


def _table(view: ResultsView) -> Markup:
    columns = (
        Column("Picture", "tight"),
        Column("Study", "wide"),
        Column("Finding", "wide"),
        Column("Probability, volume", "number"),
        Column("Model", "tight"),
        Column("Delivery", "tight"),
        Column("Made", "tight"),
    )
    rows = [
        (
            _thumb(row),
            stack(
                link(f"/results/{row.result_id}", study_rows.title(row.identity, row.study_id)),
                el("small", row.identity.patient_id) if row.identity else None,
            ),
            stack(row.finding, _verdict(row)),
            _measured(row),
            stack(row.model, _marks(row)),
            _delivery(row),
            when(row.created_at),
        )
        for row in view.rows
    ]
    empty = nothing(
        "No result yet.",
        "Results appear when a model is active or in shadow and a study that fits it is assembled. ",
        link("/models", "See the models"),
    )
    return table("Results", columns, rows, empty=empty)


def _thumb(row: StudyResult) -> Markup:
    if row.picture_id is None:
        return el("span", DASH, class_="none")
    return el(
        "img",
        src=f"/results/{row.picture_id}/picture.png?small",
        alt="",
        class_="thumb",
        loading="lazy",
        width="56",
        height="56",
    )


def _measured(row: StudyResult) -> Markup | str:
    """Say how probable the finding is, or how large the first series' segments are."""
    if row.segments:
        return stack(*(el("span", one.size) for one in row.segments if one.series == 1))
    return DASH if row.probability is None else f"{row.probability:.2f}"


def _verdict(row: StudyResult) -> Markup | None:
    if row.deviation:
        return badge("no finding", tone="idle")
    if row.positive is None:
        return None
    return badge("above threshold", tone="warn") if row.positive else badge("below threshold", tone="idle")


def _marks(row: StudyResult) -> Markup | None:
    marks = [badge("shadow")] if row.shadow else []
    if row.superseded:
        marks.append(badge("superseded"))
    return el("div", marks) if marks else None


def _delivery(row: StudyResult) -> Markup:
    if row.shadow:
        return el("span", "stays here", class_="none")
    if not row.deliveries:
        return el("span", "no destination", class_="none")
    return stack(*(badge(state, text=f"{number} {state}") for state, number in row.deliveries))


PAGE: Final = Page(path="/results", title="Results", right=Right.VIEW, load=load, draw=draw)
