"""The results on one study, and where each was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from appliance.db.clinical import ModelVersion, Result
from appliance.db.peers import Delivery, Peer
from appliance.web.panel import segment_parts
from appliance.web.panel.markup import DASH, el, when
from appliance.web.panel.parts import Column, badge, card, link, nothing, stack, table

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session


@dataclass(frozen=True)
class ResultRow:
    """A result on the study and where it was delivered."""

    id: str
    kind: str
    model: str
    probability: float | None
    shadow: bool
    superseded: bool
    created_at: datetime
    deliveries: tuple[tuple[str, str, str | None], ...]  # peer, state, reason
    segments: tuple[segment_parts.SegmentRow, ...] = ()


def read(session: Session, study_id: str) -> tuple[ResultRow, ...]:
    """Read all results on a study, newest first."""
    rows = session.execute(
        select(Result, ModelVersion)
        .join(ModelVersion, Result.model_version_id == ModelVersion.id)
        .where(Result.study_id == study_id)
        .order_by(Result.created_at.desc())
    ).all()
    sent = session.execute(
        select(Delivery, Peer.name)
        .join(Peer, Delivery.peer_id == Peer.id)
        .where(Delivery.result_id.in_([result.id for result, _ in rows]))
    ).all()
    return tuple(
        ResultRow(
            id=result.id,
            kind=result.kind,
            model=f"{model.name} {model.version}",
            probability=result.probability,
            shadow=result.shadow,
            superseded=result.superseded,
            created_at=result.created_at,
            deliveries=tuple(
                (name, delivery.state, delivery.reason)
                for delivery, name in sent
                if delivery.result_id == result.id
            ),
            segments=segment_parts.read(result.finding),
        )
        for result, model in rows
    )


def draw(found: tuple[ResultRow, ...]) -> Markup:
    """Draw the results of a study as a card."""
    columns = (
        Column("Result", "wide"),
        Column("Probability", "number"),
        Column("Made", "tight"),
        Column("Delivered to", "wide"),
    )
    rows = [
        (
            stack(
                link(f"/results/{row.id}", kind_name(row.kind)),
                el("small", row.model),
                el("small", segment_parts.names(row.segments)) if row.segments else None,
                _marks(row),
            ),
            DASH if row.probability is None else f"{row.probability:.2f}",
            when(row.created_at),
            _delivered(row),
        )
        for row in found
    ]
    empty = nothing(
        "No result.",
        "Results appear once an active model fits the study. ",
        link("/models", "See the models"),
    )
    return card("Results", table("Results", columns, rows, empty=empty))


def kind_name(kind: str) -> str:
    """Name a kind of result as DICOM does."""
    names = {"sr": "Structured Report", "sc": "Secondary Capture", "seg": "Segmentation"}
    return names.get(kind, kind.upper())


def _marks(row: ResultRow) -> Markup | None:
    marks = [badge("shadow")] if row.shadow else []
    if row.superseded:
        marks.append(badge("superseded"))
    return el("div", marks) if marks else None


def _delivered(row: ResultRow) -> Markup:
    if row.shadow:
        return el("span", "never: shadow results stay here", class_="none")
    if not row.deliveries:
        return el("span", "no destination", class_="none")
    return stack(
        *(
            el("div", badge(state), " ", peer, el("small", reason) if reason else None)
            for peer, state, reason in row.deliveries
        )
    )
