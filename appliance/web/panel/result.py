"""One result: the picture as the reading room sees it, what was found, where it was sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance.auth.rights import Right
from appliance.db.clinical import ModelVersion, Result, Study, StudyRevision
from appliance.db.engine import reading
from appliance.db.peers import Delivery, Peer
from appliance.web.panel import segment_parts, study_rows
from appliance.web.panel.deliveries import PROOF_WORDS
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.page import Drawing, NotThereError, Page, Query
from appliance.web.panel.parts import (
    Column,
    badge,
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
from appliance.web.panel.results import finding_name, is_positive
from appliance.web.panel.study_results import kind_name
from inference.deviations import NO_FINDING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

    from appliance.web.desk import Desk, Viewer


@dataclass(frozen=True)
class DeliveryRow:
    """The result on its way to one destination."""

    peer: str
    state: str
    reason: str | None
    delivered_at: datetime | None
    proof: str


@dataclass(frozen=True)
class ResultView:
    """One result."""

    id: str
    kind: str
    study_id: str
    identity: study_rows.Identity | None
    revision: int
    model_id: str
    model: str
    model_state: str
    package_sha256: str
    finding: str
    finding_code: str
    probability: float | None
    threshold: float | None
    positive: bool | None
    shadow: bool
    superseded: bool
    sop_instance_uid: str | None
    created_at: datetime
    deliveries: tuple[DeliveryRow, ...]
    siblings: tuple[tuple[str, str], ...]  # id, kind
    picture_id: str | None
    sees_pictures: bool
    segments: tuple[segment_parts.SegmentRow, ...] = ()
    unreadable: int = 0
    deviation_threshold: float | None = None  # of a model of anomalies


def load(desk: Desk, viewer: Viewer, query: Query) -> ResultView:
    """Read one result."""
    sees = viewer.may(Right.VIEW_IDENTITY)
    with reading(desk.zone.engine) as session:
        result = session.get(Result, query.text("result_id"))
        if result is None:
            raise NotThereError("result: no such row")
        study = session.get_one(Study, result.study_id)
        model = session.get_one(ModelVersion, result.model_version_id)
        family = session.scalars(
            select(Result)
            .where(Result.study_revision_id == result.study_revision_id, Result.model_version_id == model.id)
            .order_by(Result.kind)
        ).all()
        threshold = result.finding.get("threshold")
        return ResultView(
            id=result.id,
            kind=result.kind,
            study_id=study.id,
            identity=study_rows.identity(study, viewer),
            revision=session.get_one(StudyRevision, result.study_revision_id).number,
            model_id=model.id,
            model=f"{model.name} {model.version}",
            model_state=model.state,
            package_sha256=model.package_sha256,
            finding=finding_name(result.finding),
            finding_code=_code(result.finding),
            probability=result.probability,
            threshold=float(threshold) if isinstance(threshold, int | float) else None,
            positive=is_positive(result),
            shadow=result.shadow,
            superseded=result.superseded,
            sop_instance_uid=result.sop_instance_uid if sees else None,
            created_at=result.created_at,
            deliveries=_deliveries_of(session, result.id),
            siblings=tuple((one.id, one.kind) for one in family if one.id != result.id),
            picture_id=next((one.id for one in family if one.kind == "sc" and sees), None),
            sees_pictures=sees,
            segments=segment_parts.read(result.finding),
            unreadable=int(result.finding.get("unreadable") or 0),
            deviation_threshold=segment_parts.threshold(result.finding),
        )


def _code(finding: Mapping[str, Any]) -> str:
    return " ".join(str(finding[key]) for key in ("scheme", "code") if finding.get(key))


def _deliveries_of(session: Session, result_id: str) -> tuple[DeliveryRow, ...]:
    statement = (
        select(Delivery, Peer.name)
        .join(Peer, Delivery.peer_id == Peer.id)
        .where(Delivery.result_id == result_id)
    )
    return tuple(
        DeliveryRow(name, delivery.state, delivery.reason, delivery.delivered_at, delivery.proof)
        for delivery, name in session.execute(statement)
    )


def draw(view: ResultView, viewer: Viewer) -> Drawing:
    """Draw picture and facts side by side."""
    del viewer
    marks = [badge("shadow")] if view.shadow else []
    if view.superseded:
        marks.append(badge("superseded"))
    return {
        "head": page_head(
            study_rows.title(view.identity, view.study_id),
            marks=marks,
            lead=f"{kind_name(view.kind)} by {view.model}. Research use only, never a diagnosis.",
            back=("/results", "Results"),
        ),
        "body": grid(
            _picture(view),
            el(
                "div",
                _segments(view) if view.segments else _finding(view),
                _deliveries(view),
                _origin(view),
                class_="column",
            ),
            class_="wide-left",
        ),
    }


def _picture(view: ResultView) -> Markup:
    if not view.sees_pictures:
        return card(
            "Picture",
            nothing("The picture is hidden.", "It needs the right to view identities and pictures."),
        )
    if view.picture_id is None:
        return card("Picture", nothing("This result has no picture."))
    alternative = f"Secondary Capture: {view.finding}"
    if view.probability is not None:
        alternative += f", probability {view.probability:.2f}"
    image = el("img", src=f"/results/{view.picture_id}/picture.png", alt=alternative)
    return card("Picture", el("div", image, class_="picture"))


def _finding(view: ResultView) -> Markup:
    verdict = None
    if view.positive is not None:
        verdict = (
            badge("above threshold", tone="warn") if view.positive else badge("below threshold", tone="idle")
        )
    rows: list[tuple[str, object]] = [
        ("Finding", stack(view.finding, el("small", view.finding_code) if view.finding_code else None)),
        ("Probability", stack(DASH if view.probability is None else f"{view.probability:.3f}", verdict)),
        ("Threshold", DASH if view.threshold is None else f"{view.threshold:.3f}"),
    ]
    return card("Finding", facts(rows))


def _segments(view: ResultView) -> Markup:
    left_out, meaning = None, None
    if view.deviation_threshold is not None:
        words = (
            f"A mark is {NO_FINDING}: pixels that differ by more than {100 * view.deviation_threshold:.1f} % "
            "of black to white from what the model makes of the picture."
        )
        meaning = el("p", words, class_="muted")
    if view.unreadable:
        words = f"{view.unreadable} of the study could not be marked: no volume, or not readable."
        left_out = el("p", words, class_="muted")
    return card("Segments", segment_parts.draw_table(view.segments), meaning, left_out)


def _origin(view: ResultView) -> Markup:
    rows: list[tuple[str, object]] = [
        ("Study", link(f"/studies/{view.study_id}", study_rows.title(view.identity, view.study_id))),
        ("Revision", view.revision),
        ("Model", stack(link(f"/models/{view.model_id}", view.model), badge(view.model_state))),
        ("Package", code(view.package_sha256, length=16)),
        ("Made", when(view.created_at, seconds=True)),
        (
            "Also made",
            stack(*(link(f"/results/{id_}", kind_name(kind)) for id_, kind in view.siblings))
            if view.siblings
            else DASH,
        ),
    ]
    if view.sop_instance_uid:
        rows.append(("SOP Instance UID", code(view.sop_instance_uid, length=64)))
    return card("Origin", facts(rows))


def _deliveries(view: ResultView) -> Markup:
    if view.shadow:
        return card(
            "Delivery", el("p", "Shadow results are compared here and never delivered.", class_="muted")
        )
    columns = (Column("To", "tight"), Column("State", "wide"))
    rows = [
        (
            row.peer,
            stack(
                badge(row.state),
                el("small", PROOF_WORDS[row.proof]) if row.proof in PROOF_WORDS else None,
                when(row.delivered_at, seconds=True) if row.delivered_at else None,
                el("small", row.reason) if row.reason else None,
            ),
        )
        for row in view.deliveries
    ]
    empty = nothing(
        "It was sent nowhere.", "Mark a peer as a destination under ", link("/peers", "Peers"), "."
    )
    return card("Delivery", table("Delivery", columns, rows, empty=empty))


PAGE: Final = Page(
    path="/results/{result_id}", title="Result", right=Right.VIEW, load=load, draw=draw, menu="/results"
)
