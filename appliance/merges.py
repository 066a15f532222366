"""Merges and mixed identities: what an instance says against what is stored, and what waits meanwhile.

A PACS that merges patients or studies sends the same instances again with other identifiers; a modality may
give two patients one study. None of it is settled here: the instance is stopped, and until a person decides,
its study is not assembled, not de-identified, and no result of it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from appliance.db.clinical import Instance, QuarantineItem, Series, Study

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dicom_node.index import InstanceHeader

OTHER_BYTES: Final = "duplicate_other_bytes"
PATIENT_MISMATCH: Final = "patient_mismatch"
INSTANCE_OF_OTHER_PATIENT: Final = "instance_of_other_patient"
INSTANCE_OF_OTHER_STUDY: Final = "instance_of_other_study"
SERIES_OF_OTHER_STUDY: Final = "series_of_other_study"

# While an item of these waits for a person, nobody knows whose study it is.
DISPUTES: Final = frozenset(
    {PATIENT_MISMATCH, INSTANCE_OF_OTHER_PATIENT, INSTANCE_OF_OTHER_STUDY, SERIES_OF_OTHER_STUDY}
)
DISPUTED: Final = "an instance says otherwise whose study this is; a person decides in Quarantine"


@dataclass(frozen=True)
class Conflict:
    """Why an instance cannot be filed beside what is stored."""

    code: str
    reason: str
    study_id: str
    instance_id: str | None = None


def is_disputed(session: Session, study_id: str) -> bool:
    """Whether something waits for a person that says otherwise whose study this is."""
    statement = select(QuarantineItem.id).where(
        QuarantineItem.study_id == study_id,
        QuarantineItem.reason_code.in_(DISPUTES),
        QuarantineItem.resolved_at.is_(None),
    )
    return session.scalar(statement.limit(1)) is not None


def of_other_bytes(session: Session, header: InstanceHeader, known: Instance) -> Conflict:
    """Say what an instance is whose UID is stored with other bytes."""
    study = session.get_one(Study, session.get_one(Series, known.series_id).study_id)
    if not same_patient(study, header):
        code, reason = INSTANCE_OF_OTHER_PATIENT, "this very instance is stored with another patient"
    elif study.study_instance_uid != header.study_instance_uid:
        code, reason = INSTANCE_OF_OTHER_STUDY, "this very instance is stored in another study"
    else:
        code, reason = OTHER_BYTES, "an instance with this SOP Instance UID and other bytes is stored already"
    return Conflict(code, reason, study.id, known.id)


def of_new(
    session: Session, header: InstanceHeader, study: Study | None, series: Series | None
) -> Conflict | None:
    """Look whether an instance fits its study's patient, and a new series no other study (PS3.3 A.1.2)."""
    if study is not None and not same_patient(study, header):
        return Conflict(PATIENT_MISMATCH, "other instances of the study name another patient", study.id)
    if series is not None:
        return None
    holder = session.scalar(
        select(Series.study_id).where(Series.series_instance_uid == header.series_instance_uid).limit(1)
    )
    if holder is None:
        return None
    return Conflict(
        SERIES_OF_OTHER_STUDY, "other instances of its series are stored in another study", holder
    )


def same_patient(study: Study, header: InstanceHeader) -> bool:
    """PatientID decides, and its issuer where both name one; names are spelled too differently."""
    if study.patient_id != header.patient_id:
        return False
    issuers = {study.issuer_of_patient_id, header.issuer_of_patient_id} - {""}
    return len(issuers) <= 1
