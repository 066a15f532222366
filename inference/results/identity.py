"""Copy who the patient is and which study this is from a source instance, unchanged.

References
----------
DICOM PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.2.2 (Patient Study), C.12.1.1.2 (character sets).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR

from inference.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom import Dataset

PATIENT: Final = (
    "PatientName", "PatientID", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate", "PatientSex", "OtherPatientIDsSequence",
)  # fmt: skip
STUDY: Final = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "StudyDescription",
    "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
TYPE_2: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Whoever differs in one of these is another person until somebody says otherwise.
DECISIVE: Final = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_UTF_8: Final = "ISO_IR 192"


def differing(instances: Iterable[Dataset]) -> tuple[str, ...]:
    """Return the keywords in which instances of one study disagree about the patient.

    An empty value contradicts nothing, except as Patient ID.
    """
    found = [{keyword: _comparable(ds.get(keyword)) for keyword in DECISIVE} for ds in instances]
    wrong = []
    for keyword in DECISIVE:
        values = {item[keyword] for item in found}
        if keyword != "PatientID":
            values.discard("")
        if len(values) > 1:
            wrong.append(keyword)
    return tuple(wrong)


def _comparable(value: object) -> str:
    """Without padding, empty name components (PS3.5 6.2.1.1) and differences of case."""
    return "=".join(part.rstrip("^ ") for part in str(value or "").split("=")).rstrip("= ").strip().casefold()


def check_same_patient(instances: Sequence[Dataset]) -> None:
    """Refuse to make a result of pictures that name different patients, or none.

    Raises
    ------
    ResultError
        ``identity.mismatch``, naming the attributes, never their values; ``identity.missing`` without a
        Patient ID: a result that nobody can file is never delivered.
    """
    wrong = differing(instances)
    if wrong:
        raise ResultError("identity.mismatch", f"instances of the study disagree in {', '.join(wrong)}")
    if not all(_comparable(instance.get("PatientID")) for instance in instances):
        raise ResultError("identity.missing", "PatientID (0010,0020): empty; expected one")


def copy_identity(source: Dataset, target: Dataset, texts: Sequence[str] = ()) -> None:
    """Put the true identity of ``source`` into ``target``, with its character set.

    Parameters
    ----------
    source : Dataset
        A source instance.
    target : Dataset
        The result; it is changed.
    texts : sequence of str
        Our own texts in the result. If the source's character set cannot hold one, the result is in UTF-8.
    """
    for keyword in (*PATIENT, *STUDY):
        if keyword in target:
            del target[keyword]
        if keyword in source:
            target.add(copy.deepcopy(source[keyword]))
        elif keyword in TYPE_2:
            target.add_new(keyword, dictionary_VR(keyword), None)
    character_set = source.get("SpecificCharacterSet")
    if not _fits(texts, character_set):
        character_set = _UTF_8
    if character_set:
        target.SpecificCharacterSet = character_set
    elif "SpecificCharacterSet" in target:
        del target.SpecificCharacterSet


def settle_time(target: Dataset) -> None:
    """Let every moment in a result be its content's, so that a retry makes the same bytes."""
    date, time = target.ContentDate, target.ContentTime
    target.InstanceCreationDate, target.InstanceCreationTime = date, time
    if "DateOfSecondaryCapture" in target:
        target.DateOfSecondaryCapture, target.TimeOfSecondaryCapture = date, time
    for item in target.get("ContributingEquipmentSequence") or []:
        if "ContributionDateTime" in item:
            item.ContributionDateTime = f"{date}{time}"


def _fits(texts: Sequence[str], character_set: object) -> bool:
    if all(text.isascii() for text in texts):
        return True
    if not isinstance(character_set, str) or character_set in ("", "ISO_IR 6"):
        return False
    encoding = convert_encodings(character_set)[0]
    try:
        for text in texts:
            text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
