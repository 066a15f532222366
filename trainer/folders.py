"""A site as a folder: DICOM files anywhere below it, labels in a CSV file. For simulations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom import dcmread

from trainer.datasets import UNREADABLE, Case
from trainer.errors import DatasetError
from trainer.labels import read_labels_csv
from trainer.weights_io import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydicom import Dataset

    from trainer.labels import LabelProblem, LabelTable

LABELS: Final = "labels.csv"
_KEYWORDS: Final = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"]
_Values = dict[tuple[str, str, str], int]


@dataclass(frozen=True)
class SiteFolder:
    """Labelled cases, wrong lines of the label file, and files left out by reason."""

    cases: tuple[Case, ...]
    problems: tuple[LabelProblem, ...]
    skipped: Mapping[str, int]


def read_site_folder(folder: Path, label: str, labels: Path | None = None) -> SiteFolder:
    """Join a folder's instances with its labels, by patient and, where a row names one, by study.

    ``labels`` is the label file, ``labels.csv`` of the folder by default.
    The folder is read as it is: identifiers in it are not replaced, and are used for the split alone.

    Raises
    ------
    DatasetError
        If there is no such folder.
    LabelFileError
        If the label file cannot be read.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder")
    labels = labels or folder / LABELS
    table = read_labels_csv(labels)
    values = _values(table, label)
    cases: list[Case] = []
    skipped: Counter[str] = Counter()
    left_out = {labels.resolve(), (folder / LABELS).resolve()}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.resolve() not in left_out
    ):
        try:
            ds = dcmread(path, stop_before_pixels=True, specific_tags=_KEYWORDS)
            value = _value_of(ds, values)
        except UNREADABLE:
            skipped["unreadable"] += 1
            continue
        if value is None:
            skipped["unlabelled"] += 1
            continue
        cases.append(Case("\n".join(_patient(ds)), path, value, sha256(path)))
    return SiteFolder(tuple(cases), table.problems, dict(sorted(skipped.items())))


def _values(table: LabelTable, label: str) -> _Values:
    return {
        (row.issuer, row.patient_id, row.study_instance_uid): row.value
        for row in table.rows
        if row.name == label
    }


def _value_of(ds: Dataset, values: _Values) -> int | None:
    """Find a row: of the study before of the patient, of the issuer before of none."""
    issuer, patient = _patient(ds)
    study = str(ds.get("StudyInstanceUID", "")).strip()
    if not patient:
        return None
    for key in ((issuer, patient, study), ("", patient, study), (issuer, patient, ""), ("", patient, "")):
        if key in values:
            return values[key]
    return None


def _patient(ds: Dataset) -> tuple[str, str]:
    return str(ds.get("IssuerOfPatientID", "")).strip(), str(ds.get("PatientID", "")).strip()
