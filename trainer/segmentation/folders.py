"""A site as a folder of pictures and masks, DICOM files anywhere below it. For simulations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom import dcmread

from trainer.datasets import UNREADABLE
from trainer.errors import DatasetError
from trainer.folders import LABELS
from trainer.segmentation.cases import Stored
from trainer.segmentation.masks import MODALITY
from trainer.weights_io import sha256

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trainer.task import TaskSpec

_KEYWORDS: Final = [
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
]


@dataclass(frozen=True)
class MaskFolder:
    """Pictures and masks, and files left out by reason."""

    stored: tuple[Stored, ...]
    skipped: Mapping[str, int]


def read_mask_folder(folder: Path, task: TaskSpec) -> MaskFolder:
    """List the instances of the task's modalities and all masks; identifiers are used for the split alone.

    Raises
    ------
    DatasetError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder")
    stored: list[Stored] = []
    skipped: Counter[str] = Counter()
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.name != LABELS):
        try:
            ds = dcmread(path, stop_before_pixels=True, specific_tags=_KEYWORDS)
            values = [str(ds.get(keyword, "")).strip() for keyword in _KEYWORDS]
        except UNREADABLE:
            skipped["unreadable"] += 1
            continue
        patient, issuer, study, series, instance, modality = values
        if modality not in {*task.modalities, MODALITY}:
            skipped["modality"] += 1
        elif not (patient and study and series and instance):
            skipped["unidentified"] += 1
        else:
            owner = f"{issuer}\n{patient}"
            stored.append(Stored(owner, study, series, instance, modality, path, sha256(path)))
    return MaskFolder(tuple(stored), dict(sorted(skipped.items())))
