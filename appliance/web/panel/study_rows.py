"""What is shown of a study's identity, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.auth.rights import Right

if TYPE_CHECKING:
    from appliance.db.clinical import Study
    from appliance.web.desk import Viewer

_DICOM_DATE_LENGTH = 8


@dataclass(frozen=True)
class Identity:
    """The patient's and the study's true values; only for those who may see them."""

    patient_name: str
    patient_id: str
    issuer_of_patient_id: str
    study_date: str
    study_description: str
    study_instance_uid: str


def identity(study: Study, viewer: Viewer) -> Identity | None:
    """Return the identity of a study, None for a viewer without the right."""
    if Right.VIEW_IDENTITY not in viewer.rights:
        return None
    return Identity(
        patient_name=person_name(study.patient_name),
        patient_id=study.patient_id,
        issuer_of_patient_id=study.issuer_of_patient_id,
        study_date=dicom_date(study.study_date),
        study_description=study.study_description,
        study_instance_uid=study.study_instance_uid,
    )


def person_name(value: str) -> str:
    """Write a person name for reading: family, given middle (PS3.5 6.2.1)."""
    parts = [part.strip() for part in value.split("=", 1)[0].split("^")]
    family, given = parts[0], " ".join(part for part in parts[1:3] if part)
    return ", ".join(part for part in (family, given) if part)


def dicom_date(value: str) -> str:
    """Write a DICOM date (PS3.5 6.2, DA) as year-month-day; anything else as it is."""
    if len(value) == _DICOM_DATE_LENGTH and value.isdecimal():
        return f"{value[:4]}-{value[4:6]}-{value[6:]}"
    return value


def study_name(study_id: str) -> str:
    """Return the name by which a study is called where no identity may be shown."""
    return f"Study {study_id[:8]}"


def modalities(value: str) -> str:
    """Write the modalities of a study (backslash-separated) for reading."""
    return ", ".join(part for part in value.split("\\") if part)


def title(shown: Identity | None, study_id: str) -> str:
    """Return what a study is called for this viewer."""
    return (shown.patient_name or shown.patient_id if shown else "") or study_name(study_id)
