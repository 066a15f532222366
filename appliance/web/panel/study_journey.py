"""Where the revisions of a study went: what was decided of each, and its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance import studies
from appliance.db.clinical import ClinicalJob, StudyRevision
from appliance.web.panel.markup import count, el, when
from appliance.web.panel.parts import badge, card, nothing, stack

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from sqlalchemy.orm import Session

_STEPS: Final = {
    "deidentify": "De-identification",
    "infer": "Inference",
    "evaluate": "Evaluation",
    "deliver": "Delivery",
}


@dataclass(frozen=True)
class StepRow:
    """A job on a revision: where the revision went."""

    kind: str
    state: str
    attempts: int
    reason: str | None
    updated_at: datetime


@dataclass(frozen=True)
class RevisionRow:
    """A revision of the study."""

    id: str
    number: int
    instance_count: int
    assembled_at: datetime
    rules: tuple[str, ...]
    explanation: tuple[str, ...]
    deidentification_state: str
    released_count: int
    quarantined_count: int
    steps: tuple[StepRow, ...]


def read(session: Session, study_id: str) -> tuple[RevisionRow, ...]:
    """Read a study's revisions, the newest first."""
    revisions = session.scalars(
        select(StudyRevision).where(StudyRevision.study_id == study_id).order_by(StudyRevision.number.desc())
    ).all()
    jobs = session.scalars(
        select(ClinicalJob)
        .where(ClinicalJob.subject_id.in_([revision.id for revision in revisions]))
        .order_by(ClinicalJob.created_at)
    ).all()
    return tuple(
        RevisionRow(
            id=revision.id,
            number=revision.number,
            instance_count=revision.instance_count,
            assembled_at=revision.assembled_at,
            rules=_rule_names(revision.rule_outcome),
            explanation=tuple(studies.explanation(revision.rule_outcome)),
            deidentification_state=revision.deidentification_state,
            released_count=revision.released_count,
            quarantined_count=revision.quarantined_count,
            steps=tuple(
                StepRow(job.kind, job.state, job.attempts, job.reason, job.updated_at)
                for job in jobs
                if job.subject_id == revision.id
            ),
        )
        for revision in revisions
    )


def _rule_names(outcome: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in outcome.get("rules", []))


def draw(revisions: tuple[RevisionRow, ...]) -> Markup:
    """Draw where each revision went."""
    if not revisions:
        empty = nothing(
            "Not assembled yet.", "The study is assembled once no instance has arrived for the quiet period."
        )
        return card("Where it went", empty)
    return card("Where it went", *(_revision(row) for row in revisions))


def _revision(row: RevisionRow) -> Markup:
    assembled = _line(when(row.assembled_at, seconds=True), count(row.instance_count, "instance"))
    steps: list[tuple[str, object]] = [
        ("Assembled", assembled),
        ("Rules", _rules(row)),
        *((_STEPS.get(step.kind, step.kind), _step(step)) for step in row.steps),
    ]
    if row.deidentification_state:
        numbers = (
            f"{count(row.released_count, 'instance')} to research, {row.quarantined_count} in quarantine"
        )
        steps.append(("Left for research", _line(badge(row.deidentification_state), numbers)))
    items = (el("li", el("span", name, class_="muted"), el("div", value)) for name, value in steps)
    return el("div", el("h3", f"Revision {row.number}"), el("ul", items, class_="steps"))


def _rules(row: RevisionRow) -> Markup:
    """Say which rules matched, and unfold why each did or did not."""
    names = ", ".join(row.rules) if row.rules else "none matched"
    if not row.explanation:
        return el("span", names)
    lines = el("ul", (el("li", line) for line in row.explanation), class_="why")
    return el("details", el("summary", names), lines, id=f"why-{row.id}")


def _line(*parts: object) -> Markup:
    """Lay a state and what is said of it in one line."""
    first, *rest = parts
    return el("div", first, (el("span", part, class_="muted") for part in rest if part), class_="line")


def _step(step: StepRow) -> Markup:
    tries = count(step.attempts, "attempt") if step.attempts > 1 else None
    line = _line(badge(step.state), when(step.updated_at, seconds=True), tries)
    return stack(line, el("span", step.reason, class_="reason") if step.reason else None)
