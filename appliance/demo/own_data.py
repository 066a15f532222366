"""The user's own studies as the cohorts of hospitals: read where they lie, split by patient, unchanged."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from appliance.demo.cohorts import Cohort, CohortStudy
from appliance.demo.leaks import MINIMUM_LENGTH
from appliance.errors import ApplianceError
from trainer.labels import read_labels_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

MINIMUM_PATIENTS: Final = 30
_UNREADABLE: Final = (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, NotImplementedError)

# What identifies a person or a study and stands in a file as text; dates are shifted and may meet others.
IDENTIFYING: Final = (
    "PatientID",
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "InstitutionName",
    "InstitutionAddress",
    "AccessionNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
)


# Words that stand where an identity should stand, and in texts that are nobody's.
PLACEHOLDERS: Final = frozenset(
    {
        "anonym", "anonymized", "anonymised", "anonymous", "clinic", "doctor", "hospital", "institution",
        "operator", "patient", "physician", "radiology", "removed", "study", "unknown", "unnamed",
    }
)  # fmt: skip


class OwnDataError(ApplianceError):
    """The studies or labels cannot be used; the message says what was expected."""


@dataclass
class _Study:
    """One study while files are read."""

    patient_id: str
    issuer: str
    paths: list[Path] = field(default_factory=list)
    planted: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class OwnData:
    """Three cohorts, the study kept back for the end, and what is learned."""

    cohorts: tuple[Cohort, ...]
    following: CohortStudy
    label: str
    modalities: tuple[str, ...]
    skipped_files: int


def read_own(data: Path, labels: Path, folder: Path, sites: tuple[str, ...]) -> OwnData:
    """Split a folder of DICOM files and its labels by patient.

    Parameters
    ----------
    data : Path
        Folder of DICOM files, read with its subfolders.
    labels : Path
        CSV: ``patient_id[,issuer][,study_instance_uid],label,value``; the label of most rows is learned.
    folder : Path
        Receives one labels file for each site.
    sites : tuple of str
        Their names.

    Raises
    ------
    OwnDataError
        If there are too few labelled patients.
    """
    table = read_labels_csv(labels)
    counts: dict[str, int] = defaultdict(int)
    for row in table.rows:
        counts[row.name] += 1
    if not counts:
        raise OwnDataError(f"{labels.name}: no usable row; expected patient_id,label,value")
    label = max(counts, key=lambda name: counts[name])
    by_patient = {row.patient_id: row.value for row in table.rows if row.name == label}
    studies, modalities, skipped = _read(data)
    patients = sorted({study.patient_id for study in studies.values() if study.patient_id in by_patient})
    if len(patients) < MINIMUM_PATIENTS:
        raise OwnDataError(f"{len(patients)} labelled patient(s) found; expected {MINIMUM_PATIENTS} or more")
    last = next((p for p in reversed(patients) if by_patient[p] == 1), patients[-1])
    ordered = [p for p in patients if p != last]
    ordered.sort(key=lambda patient: by_patient[patient])  # then dealt round: every site gets both values
    home = {patient: sites[i % len(sites)] for i, patient in enumerate(ordered)}
    cohorts = tuple(_cohort(site, home, studies, by_patient, labels, folder) for site in sites)
    following = next(
        _as_cohort_study(uid, study, by_patient) for uid, study in studies.items() if study.patient_id == last
    )
    return OwnData(cohorts, following, label, tuple(sorted(modalities)), skipped)


def _read(data: Path) -> tuple[dict[str, _Study], set[str], int]:
    studies: dict[str, _Study] = {}
    modalities: set[str] = set()
    skipped = 0
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        try:
            ds = dcmread(path, stop_before_pixels=True)
            uid, patient = str(ds.StudyInstanceUID), str(ds.PatientID)
            modalities.add(str(ds.Modality))
        except _UNREADABLE:
            skipped += 1
            continue
        study = studies.setdefault(uid, _Study(patient, str(ds.get("IssuerOfPatientID", ""))))
        study.paths.append(path)
        study.planted |= set(identifying_values(ds))
    return studies, modalities, skipped


def identifying_values(ds: Dataset) -> Iterator[str]:
    """Yield the identifying texts of a data set, nested ones included, that are long enough to search for."""
    for element in ds.iterall():
        if element.keyword in IDENTIFYING:
            for text in _texts(element.value):
                if len(text) >= MINIMUM_LENGTH and text.casefold() not in PLACEHOLDERS:
                    yield text


def _texts(value: Any) -> Iterable[str]:
    values = value if isinstance(value, MultiValue | list) else [value]
    for single in values:
        if isinstance(single, PersonName):
            yield from (part.strip() for part in str(single).replace("=", "^").split("^"))
        elif single is not None:
            yield str(single).strip()


def _cohort(
    site: str,
    home: dict[str, str],
    studies: dict[str, _Study],
    by_patient: dict[str, int],
    labels: Path,
    folder: Path,
) -> Cohort:
    mine = tuple(
        _as_cohort_study(uid, study, by_patient)
        for uid, study in studies.items()
        if home.get(study.patient_id) == site
    )
    target = folder / f"labels-{site}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        labels.open(encoding="utf-8-sig", newline="") as source,
        target.open("w", encoding="utf-8", newline="") as stream,
    ):
        rows = csv.DictReader(source)
        out = csv.DictWriter(stream, rows.fieldnames or [])
        out.writeheader()
        out.writerows(row for row in rows if home.get(row.get("patient_id", "")) == site)
    return Cohort(site, mine, target, 0)


def _as_cohort_study(uid: str, study: _Study, by_patient: dict[str, int]) -> CohortStudy:
    return CohortStudy(
        paths=tuple(study.paths),
        patient_id=study.patient_id,
        issuer=study.issuer,
        study_instance_uid=uid,
        label=by_patient.get(study.patient_id),
        releasable=True,
        planted=frozenset(study.planted),
    )
