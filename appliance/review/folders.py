"""Where trials lie: ``reviews/STUDY/DECISION`` of the clinical storage root, until they are decided."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, or_, select

from appliance import logs
from appliance.db.base import now
from appliance.db.clinical import Decision, DecisionState, QuarantineItem
from appliance.db.engine import reading, writing

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone

FOLDER: Final = "reviews"
HEADER: Final = "header.json"
BEFORE, AFTER = "before", "after"
DRAFTS_FOR: Final = timedelta(days=7)
SWEPT: Final = "review.swept"
SHOWN: Final = (DecisionState.DRAFTED, DecisionState.PROPOSED)
_logger = logs.logger(__name__)


def folder_of(root: Path, study_id: str | None, decision_id: str) -> Path:
    """Return where a trial lies."""
    return root / FOLDER / (study_id or "none") / decision_id


def header_of(root: Path, study_id: str | None, decision_id: str) -> list[dict[str, str]]:
    """Return two headers side by side, as ``anonymizer.differences.Pair`` has them; empty without a trial."""
    path = folder_of(root, study_id, decision_id) / HEADER
    if not path.is_file():
        return []
    found: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def picture_of(root: Path, study_id: str | None, decision_id: str, name: str) -> bytes | None:
    """Return a picture of a trial, ``before-N`` or ``after-N`` for frame N; None where there is none."""
    side, _, number = name.partition("-")
    if side not in {BEFORE, AFTER} or not (number.isascii() and number.isdecimal()):
        return None
    path = folder_of(root, study_id, decision_id) / f"{side}-{int(number)}.png"
    return path.read_bytes() if path.is_file() else None


def forget_study(root: Path, study_id: str) -> None:
    """Remove all trials of a study that is deleted."""
    if study_id:
        shutil.rmtree(root / FOLDER / study_id, ignore_errors=True)


def sweep(zone: ClinicalZone) -> int:
    """Remove drafts that nobody decided for a week or whose item was decided otherwise, and what they showed.

    Returns
    -------
    int
        How many folders went.
    """
    closed = select(QuarantineItem.id).where(QuarantineItem.resolved_at.is_not(None))
    with writing(zone.engine) as session:
        session.execute(
            delete(Decision).where(
                Decision.state == DecisionState.DRAFTED,
                or_(Decision.created_at < now() - DRAFTS_FOR, Decision.quarantine_item_id.in_(closed)),
            )
        )
    with reading(zone.engine) as session:
        shown = set(session.scalars(select(Decision.id).where(Decision.state.in_(SHOWN))))
    gone = [path for path in (zone.root / FOLDER).glob("*/*") if path.name.lstrip(".") not in shown]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    if gone:
        _logger.info(SWEPT, folders=len(gone))
    return len(gone)
