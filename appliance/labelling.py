"""Labels: a CSV with original identifiers is read in the clinical zone; pseudonyms and mapped UIDs cross."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from anonymizer.errors import UnusablePatientIDError
from anonymizer.pseudonyms import pseudonym
from anonymizer.uids import map_uid
from appliance import crossing
from appliance.crossing import LABELS, LabelItem
from appliance.db.base import new_id
from appliance.db.clinical import Study
from appliance.db.engine import reading, writing
from appliance.release import project_keys
from trainer.labels import LabelProblem, conflicts, read_labels_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anonymizer.keys import ProjectKeys
    from appliance.node import ClinicalZone
    from trainer.labels import LabelRow

LABELS_IMPORTED: Final = "labels.imported"
SOURCE: Final = "csv"
_CHUNK: Final = 500


@dataclass(frozen=True)
class Report:
    """What an import did; ``problems`` are in the order of lines and hold no value of the file."""

    accepted: int
    problems: tuple[LabelProblem, ...]
    bundle_id: str | None


@dataclass(frozen=True)
class _Known:
    """What the node knows of the patients in a file."""

    studies: Mapping[str, frozenset[tuple[str, str]]]  # PatientID -> (issuer, StudyInstanceUID)


def import_labels(zone: ClinicalZone, csv_path: Path, actor: str) -> Report:
    """Read a label file and hand its good rows over, by pseudonym and mapped study UID.

    Rows of patients or studies that this node never received are reported and left out, as are rows that the
    reader of the file reports (malformed, contradictory), and rows that contradict one another once their
    patients are known.

    Parameters
    ----------
    zone : ClinicalZone
        The clinical zone.
    csv_path : Path
        The file: see :mod:`trainer.labels`.
    actor : str
        Row id of the user, or a role, for the ledger.

    Raises
    ------
    trainer.errors.LabelFileError
        If the file cannot be read at all.
    """
    table = read_labels_csv(csv_path)
    known = _known(zone, sorted({row.patient_id for row in table.rows}))
    keys = project_keys(zone)
    judged = {row.line: _judge(row, known, keys) for row in table.rows}
    # Two spellings of one patient, with and without the issuer, are the same from here on.
    found = {line: item for line, item in judged.items() if isinstance(item, LabelItem)}
    clashes = conflicts(
        (line, (item.pseudonym, item.study_instance_uid, item.name), item.value)
        for line, item in found.items()
    )
    left_out = {problem.line for problem in clashes}
    items = [item for line, item in found.items() if line not in left_out]
    unknown = (item for item in judged.values() if isinstance(item, LabelProblem))
    problems = [*table.problems, *unknown, *clashes]
    problems.sort(key=lambda problem: problem.line)
    bundle_id = new_id() if items else None
    if bundle_id is not None:
        project = zone.settings.deidentification.project
        crossing.write_bundle(zone.settings, bundle_id, LABELS, project, items)
    with writing(zone.engine) as session:
        body = {"accepted": len(items), "left_out": len(problems), "bundle": bundle_id}
        zone.ledger.append(session, kind=LABELS_IMPORTED, subject_id=bundle_id, body=body, actor=actor)
    return Report(len(items), tuple(problems), bundle_id)


def _known(zone: ClinicalZone, patient_ids: Sequence[str]) -> _Known:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    with reading(zone.engine) as session:
        for start in range(0, len(patient_ids), _CHUNK):
            rows = session.execute(
                select(Study.patient_id, Study.issuer_of_patient_id, Study.study_instance_uid).where(
                    Study.patient_id.in_(patient_ids[start : start + _CHUNK])
                )
            )
            for patient_id, issuer, uid in rows:
                found[patient_id].add((issuer.strip(), uid))
    return _Known({patient_id: frozenset(studies) for patient_id, studies in found.items()})


def _judge(row: LabelRow, known: _Known, keys: ProjectKeys) -> LabelItem | LabelProblem:
    studies = known.studies.get(row.patient_id, frozenset())
    if row.issuer:
        studies = frozenset(study for study in studies if study[0] == row.issuer.strip())
    if not studies:
        return LabelProblem(row.line, "unknown_patient", "this node has no study of the patient")
    if row.study_instance_uid:
        studies = frozenset(study for study in studies if study[1] == row.study_instance_uid)
        if not studies:
            return LabelProblem(row.line, "unknown_study", "this node has no such study of the patient")
    issuers = {issuer for issuer, _ in studies}
    if len(issuers) > 1:
        message = "several issuers know this PatientID; expected the column issuer"
        return LabelProblem(row.line, "ambiguous_patient", message)
    try:
        name = pseudonym(keys, row.patient_id, issuers.pop())
    except UnusablePatientIDError:
        message = "the PatientID is a placeholder; nothing of this patient crosses"
        return LabelProblem(row.line, "unusable_patient_id", message)
    study = map_uid(keys, row.study_instance_uid) if row.study_instance_uid else ""
    return LabelItem(name, study, row.name, row.value, SOURCE)
