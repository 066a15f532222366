"""Studies as commands show them: states, counts and reasons, without any identity."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance.actions import Explanation
from appliance.db.clinical import Study, StudyRevision
from appliance.db.engine import reading
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from appliance.node import ClinicalZone

SHORTEST: Final = 6
_BEGINNING: Final = re.compile(r"[0-9a-f]{6,32}")


class StudyError(ApplianceError):
    """No study is meant by what was given."""


def find_studies(zone: ClinicalZone, *, state: str = "", limit: int = 50) -> list[dict[str, Any]]:
    """Return the studies that were received last, as JSON values."""
    statement = select(Study).order_by(Study.last_received_at.desc(), Study.id).limit(limit)
    if state:
        statement = statement.where(Study.state == state)
    with reading(zone.engine) as session:
        return [_row(study) for study in session.scalars(statement)]


def find_one(zone: ClinicalZone, beginning: str) -> str:
    """Return the id of the one study whose row id begins so.

    Raises
    ------
    StudyError
        If it is none, or several.
    """
    if not _BEGINNING.fullmatch(beginning):
        raise StudyError(f"study: expected a row id, or at least the first {SHORTEST} digits of one")
    with reading(zone.engine) as session:
        found = session.scalars(select(Study.id).where(Study.id.startswith(beginning)).limit(2)).all()
    if len(found) != 1:
        raise StudyError("study: several rows begin so" if found else "study: no such row")
    return found[0]


def describe(zone: ClinicalZone, study_id: str) -> dict[str, Any]:
    """Return where a study stands and what the rules said, as JSON values."""
    with reading(zone.engine) as session:
        study = session.get_one(Study, study_id)
        return {**_row(study), "reason": study.reason, "revisions": _revisions(session, study_id)}


def _row(study: Study) -> dict[str, Any]:
    return {
        "id": study.id,
        "state": study.state,
        "modalities": study.modalities.replace("\\", ","),
        "instances": study.instance_count,
        "revision": study.revision,
        "calling_ae_title": study.calling_ae_title,
        "complete": study.complete,
        "on_hold": study.on_hold,
        "first_received_at": study.first_received_at.isoformat(timespec="seconds"),
        "last_received_at": study.last_received_at.isoformat(timespec="seconds"),
    }


def _revisions(session: Session, study_id: str) -> list[dict[str, Any]]:
    revisions = session.scalars(
        select(StudyRevision).where(StudyRevision.study_id == study_id).order_by(StudyRevision.number)
    )
    return [
        {
            "number": revision.number,
            "instances": revision.instance_count,
            "assembled_at": revision.assembled_at.isoformat(timespec="seconds"),
            "explanation": explanation(revision.rule_outcome),
        }
        for revision in revisions
    ]


def explanation(outcome: Mapping[str, Any]) -> list[str]:
    """Say in lines why the rules decided as they did; earlier nodes stored which matched, without why."""
    said = [Explanation(**item).text for item in outcome.get("explanation", ())]
    return said or [f"{name}: matched" for name in outcome.get("rules", ())]
