"""Whether a result is of the patient whose study it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dicom_node.errors import HeaderError
from dicom_node.index import InstanceHeader, read_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from appliance.work import Claim

HEARTBEAT_EVERY: Final = 200  # instances whose identity was checked

IDENTITY_MISMATCH: Final = "identity_mismatch"
IDENTITY_UNREADABLE: Final = "identity_unreadable"


def problem_of(
    claim: Claim, path: Path, instances: Sequence[tuple[str, Path]]
) -> tuple[str, str, str | None] | None:
    """Compare the result with every instance; return code, reason and instance of the first problem.

    Study and patient id must agree; issuer, birth date and name where both give one. Whatever cannot be read
    counts as a mismatch.
    """
    try:
        result = read_header(path)
    except (HeaderError, OSError):
        return IDENTITY_UNREADABLE, "the result's header cannot be read", None
    if not instances:
        return IDENTITY_MISMATCH, "the study holds no instance to compare with", None
    for number, (instance_id, file) in enumerate(instances):
        if number % HEARTBEAT_EVERY == HEARTBEAT_EVERY - 1:
            claim.heartbeat()
        try:
            header = read_header(file)
        except (HeaderError, OSError):
            return IDENTITY_UNREADABLE, "the header of an instance of the study cannot be read", instance_id
        differing = differences(result, header)
        if differing:
            reason = f"result and instance differ in {', '.join(differing)}"
            return IDENTITY_MISMATCH, reason, instance_id
    return None


def differences(result: InstanceHeader, instance: InstanceHeader) -> list[str]:
    """Return the keywords of identifying attributes in which two headers disagree."""
    found = []
    if result.study_instance_uid != instance.study_instance_uid:
        found.append("StudyInstanceUID")
    if not result.patient_id or result.patient_id != instance.patient_id:
        found.append("PatientID")
    optional = (
        ("IssuerOfPatientID", result.issuer_of_patient_id, instance.issuer_of_patient_id),
        ("PatientBirthDate", result.patient_birth_date, instance.patient_birth_date),
        ("PatientName", _comparable(result.patient_name), _comparable(instance.patient_name)),
    )
    found.extend(keyword for keyword, one, other in optional if one and other and one != other)
    return found


def _comparable(name: str) -> tuple[str, ...]:
    """Return the first component group of a name without case, empty components and double blanks."""
    group = name.partition("=")[0]
    parts = [" ".join(part.split()).casefold() for part in group.split("^")]
    return tuple(part for part in parts if part)
