"""What an archive found, as it is shown before anything is pulled; and which of it are wanted priors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from appliance.archives import FetchError
from appliance.db.clinical import Study
from appliance.db.engine import reading
from dicom_node.archive import number
from dicom_node.query import Level, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from appliance.archives import Archive
    from appliance.node import ClinicalZone
    from dicom_node.archive import Answers

SHOWN: Final = (
    "PatientID",
    "PatientName",
    "StudyDate",
    "ModalitiesInStudy",
    "StudyDescription",
    "NumberOfStudyRelatedInstances",
)
_CHUNK: Final = 500


@dataclass(frozen=True)
class Found:
    """A study that an archive has; ``instances`` is None where it does not say how many."""

    study_instance_uid: str
    instances: int | None
    details: Mapping[str, str] = field(default_factory=dict)


def choose(
    zone: ClinicalZone, answers: Answers, priors: Mapping[str, Any] | None, archive: Archive
) -> list[Found]:
    """Return what of the answers is wanted, the latest first.

    Raises
    ------
    FetchError
        When the study whose priors are wanted is gone.
    ArchiveError
        When the archive is asked for modalities that it did not give, and fails.
    """
    ordered = sorted(answers.found, key=lambda one: one.get("StudyDate", ""), reverse=True)
    if priors:
        ordered = _priors(zone, ordered, priors, archive)
    return [
        Found(
            one["StudyInstanceUID"],
            number(one.get("NumberOfStudyRelatedInstances", "")),
            {keyword: one.get(keyword, "")[:64] for keyword in SHOWN},
        )
        for one in ordered
    ]


def summarise(session: Session, found: Iterable[Found]) -> dict[str, Any]:
    """Count what was found: studies, their instances where all say so, and how many are here already."""
    listed = list(found)
    uids = [one.study_instance_uid for one in listed]
    here = 0
    for start in range(0, len(uids), _CHUNK):
        chunk = uids[start : start + _CHUNK]
        here += len(session.scalars(select(Study.id).where(Study.study_instance_uid.in_(chunk))).all())
    sizes = [one.instances for one in listed]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return {"studies": len(listed), "instances": total, "here": here}


def _priors(
    zone: ClinicalZone,
    answers: Iterable[Mapping[str, str]],
    priors: Mapping[str, Any],
    archive: Archive,
) -> list[Mapping[str, str]]:
    """Return earlier studies of the very patient: another issuer or birth date is somebody else."""
    with reading(zone.engine) as session:
        study = session.get(Study, str(priors["study_id"]))
    if study is None:
        raise FetchError("the study whose priors are wanted is gone")
    known = {
        "IssuerOfPatientID": study.issuer_of_patient_id,
        "PatientBirthDate": study.patient_birth_date,
    }
    wanted = set(priors.get("modalities") or ())
    oldest = _years_before(study.study_date, int(priors.get("years", 0)))
    kept: list[Mapping[str, str]] = []
    for one in answers:
        date = one.get("StudyDate", "")
        same = all(not one.get(key) or not value or one[key] == value for key, value in known.items())
        earlier = not (date and study.study_date) or date <= study.study_date
        other = one["StudyInstanceUID"] != study.study_instance_uid
        if not (same and earlier and other and date >= oldest):
            continue
        if not wanted or wanted & _modalities(archive, one):
            kept.append(one)
        if len(kept) >= int(priors.get("most", 1)):
            break
    return kept


def _modalities(archive: Archive, one: Mapping[str, str]) -> set[str]:
    """Return the modalities of a study; an archive that does not give them is asked for its series."""
    told = one.get("ModalitiesInStudy", "")
    if told:
        return set(told.split("\\"))
    keys = {"StudyInstanceUID": one["StudyInstanceUID"]}
    return {series.get("Modality", "") for series in archive.find(Query(Level.SERIES, keys)).found}


def _years_before(date: str, years: int) -> str:
    """Return the same day years before; the empty text, before all dates, where there is no bound."""
    if not years or len(date) != 8 or not date.isdigit():
        return ""
    return f"{max(int(date[:4]) - years, 0):04d}{date[4:]}"
