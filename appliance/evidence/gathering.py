"""The facts of an evidence pack, from the clinical zone's rows and from samples de-identified once more.

No fact is a value of an instance: rows are counted, attributes are named, and instances go by their row ids.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from anonymizer import rules
from anonymizer.differences import differences
from anonymizer.engine import Quarantined, deidentify
from anonymizer.mapping import mapped
from anonymizer.options import codes_of
from appliance import faces, quarantine, said, text_regions
from appliance.db.base import now
from appliance.db.clinical import (
    ClinicalLedgerEntry,
    Decision,
    DecisionState,
    Instance,
    QuarantineItem,
    Series,
    StudyRevision,
)
from appliance.db.engine import reading
from appliance.release import STUDY_DEIDENTIFIED, context_of
from appliance.review.scopes import STAGE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from anonymizer.profiles import Profile
    from anonymizer.regions import Region
    from appliance.node import ClinicalZone
    from appliance.said import Said

FORMAT: Final = "cloister-evidence/1"
CHECK: Final = "residual_identifier"
_OPEN: Final = ("", quarantine.PROPOSED, quarantine.RELEASING)
_CHANGES: Final = ("kept", "changed", "emptied", "removed", "added")


@dataclass(frozen=True)
class _Chosen:
    """An instance, and what is needed to de-identify it once more."""

    row_id: str
    path: str
    also: Said
    beside: list[str]


def _no_beat() -> None:
    """Nobody waits."""


def gather(zone: ClinicalZone, samples: int) -> dict[str, Any]:
    """Return the facts of the node's research project, ready for JSON.

    Parameters
    ----------
    samples : int
        How many released instances are de-identified once more and compared; chosen by a hash of their row
        ids, so that nobody picks them.

    Raises
    ------
    ProfileError
        If the profile that is set cannot be loaded.
    """
    settings = zone.settings.deidentification
    profile = text_regions.profile_in_force(zone)
    with reading(zone.engine) as session:
        facts = {
            "format": FORMAT,
            "node": zone.settings.name,
            "project": settings.project,
            "made_at": now().isoformat(timespec="seconds"),
            "profile": _profile(profile, settings.max_date_shift_days),
            "tables": _tables(),
            "profiles_used": _profiles_used(session),
            "counts": _counts(session),
            "decisions": _decisions(session),
            "ledger": _ledger(session),
        }
        chosen = _chosen(session, samples)
    facts["samples"] = [_sample(zone, chosen_row) for chosen_row in chosen]
    return facts


def _profile(profile: Profile, max_date_shift_days: int) -> dict[str, Any]:
    return {
        "name": profile.name,
        "hash": profile.hash,
        "description": profile.description,
        "codes": [{"value": value, "meaning": meaning} for value, meaning in codes_of(profile.options)],
        "rules": [{**asdict(rule), "tag": f"{rule.tag:08X}"} for rule in profile.rules],
        "released_all_the_same": sorted(profile.release),
        "text_regions_of_staff": [_region(region) for region in profile.regions],
        "max_date_shift_days": max_date_shift_days,
    }


def _region(region: Region) -> dict[str, Any]:
    boxes = [[box.left, box.top, box.right, box.bottom] for box in region.boxes]
    names = {"modality": region.modality, "manufacturer": region.manufacturer, "model": region.model}
    return {**names, "rows": region.rows, "columns": region.columns, "boxes": boxes}


def _tables() -> list[dict[str, str]]:
    names = ("annex_e.json", "modules.json", "safe_private.json", "sr_codes.json")
    contents = [rules.read_table(name) for name in names]
    return [{"table": content["table"], "edition": content["edition"]} for content in contents]


def _profiles_used(session: Session) -> list[dict[str, Any]]:
    """Count the de-identified revisions by the hash of the profile that was used, as the ledger has it."""
    kind = ClinicalLedgerEntry.kind == STUDY_DEIDENTIFIED
    bodies = session.scalars(select(ClinicalLedgerEntry.body).where(kind))
    used = Counter(json.loads(body).get("profile", "") for body in bodies)
    return [{"hash": digest, "revisions": count} for digest, count in sorted(used.items())]


def _counts(session: Session) -> dict[str, Any]:
    rows = session.execute(
        select(StudyRevision.deidentification_state, func.count())
        .where(StudyRevision.deidentification_state != "")
        .group_by(StudyRevision.deidentification_state)
    )
    states = {str(state): int(count) for state, count in rows}
    released, stopped = session.execute(
        select(func.sum(StudyRevision.released_count), func.sum(StudyRevision.quarantined_count))
    ).one()
    reasons = session.execute(
        select(QuarantineItem.reason_code, QuarantineItem.resolution, func.count())
        .where(QuarantineItem.stage == STAGE)
        .group_by(QuarantineItem.reason_code, QuarantineItem.resolution)
    ).all()
    by_reason: Counter[str] = Counter()
    for code, _, count in reasons:
        by_reason[code] += count
    return {
        "revisions": states,
        "instances_released": released or 0,
        "instances_quarantined": stopped or 0,
        "quarantined_by_reason": dict(sorted(by_reason.items())),
        "quarantine_open": sum(count for _, resolution, count in reasons if resolution in _OPEN),
        "stopped_by_the_check": by_reason[CHECK],
    }


def _decisions(session: Session) -> list[dict[str, Any]]:
    """Say what people decided of what was stopped, drafts left out; people go by their row ids."""
    rows = session.scalars(
        select(Decision)
        .where(Decision.state != DecisionState.DRAFTED)
        .order_by(Decision.decided_at, Decision.id)
    )
    return [
        {
            "decision": row.id,
            "code": row.reason_code,
            "outcome": row.outcome,
            "scope": row.scope,
            "state": row.state,
            "boxes": len(row.verdict.get("boxes", ())),
            "removed": row.verdict.get("removed", []),
            "standing": row.verdict.get("standing", []),
            "decided_by": row.decided_by,
            "confirmed_by": row.confirmed_by,
            "decided_at": None if row.decided_at is None else row.decided_at.isoformat(timespec="seconds"),
        }
        for row in rows
    ]


def _ledger(session: Session) -> dict[str, Any]:
    newest = select(ClinicalLedgerEntry).order_by(ClinicalLedgerEntry.sequence.desc()).limit(1)
    head = session.scalars(newest).first()
    if head is None:
        return {"entries": 0, "head": ""}
    return {"entries": head.sequence, "head": head.entry_hash}


def _chosen(session: Session, samples: int) -> list[_Chosen]:
    stopped = select(QuarantineItem.instance_id).where(
        QuarantineItem.stage == STAGE, QuarantineItem.instance_id.is_not(None)
    )
    found = session.execute(
        select(Instance.id, Instance.path, Series.study_id)
        .join(Series)
        .join(StudyRevision, StudyRevision.study_id == Series.study_id)
        .where(StudyRevision.released_count > 0, Instance.id.not_in(stopped))
        .distinct()
    )
    rows = sorted(found, key=lambda row: sha256(row.id.encode()).digest())[:samples]
    return [
        _Chosen(row.id, row.path, said.of_study(session, row.study_id), faces.paths_beside(session, row.id))
        for row in rows
    ]


def _sample(zone: ClinicalZone, chosen: _Chosen) -> dict[str, Any]:
    """De-identify an instance once more, check it, and say what became of each attribute."""
    row_id = chosen.row_id
    context = context_of(zone, _no_beat, chosen.also, chosen.beside)
    try:
        with mapped(zone.root / chosen.path) as content:
            outcome = deidentify(content, context)
            if isinstance(outcome, Quarantined):
                return {"instance": row_id, "outcome": outcome.reason_code}
            released, chunks = outcome
            found = differences(content, b"".join(chunks))
    except FileNotFoundError:
        return {"instance": row_id, "outcome": "deleted_since"}
    counts = Counter(difference.change for difference in found)
    return {
        "instance": row_id,
        "outcome": "released",
        "check": "no finding",
        "sop_class_uid": released.sop_class_uid,
        "modality": released.modality,
        "attributes": {change: counts[change] for change in _CHANGES},
        "differences": [asdict(difference) for difference in found if difference.change != "kept"],
    }
