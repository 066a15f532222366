from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from anonymizer.pseudonyms import pseudonym
from anonymizer.uids import map_uid
from appliance import crossing
from appliance.crossing import LabelItem
from appliance.db.clinical import ClinicalLedgerEntry
from appliance.db.engine import reading
from appliance.db.research import Label, ResearchInstance, Subject
from appliance.importing import import_bundles
from appliance.labelling import import_labels
from appliance.release import project_keys
from tests.anonymizer.node import Node, make_node, study_of
from trainer.errors import LabelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = "patient_id,issuer,study_instance_uid,label,value\n"
STUDY = "1.3.6.1.4.1.99999.8.1"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    made.add_study(study_of(1))
    made.add_study(study_of(1, patient_id="MRN-0815-Y", study=2))
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def _csv(folder: Path, *rows: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def test_labels_cross_by_pseudonym_and_mapped_study_alone(node: Node, tmp_path: Path) -> None:
    path = _csv(tmp_path, f"MRN-4711-X,,{STUDY},pneumonia,1", "MRN-0815-Y,,,pneumonia,0")
    report = import_labels(node.clinical, path, "test")
    assert (report.accepted, report.problems) == (2, ())
    [bundle] = crossing.read_bundles(node.settings)
    keys = project_keys(node.clinical)
    assert bundle.items == (
        LabelItem(pseudonym(keys, "MRN-4711-X", ""), map_uid(keys, STUDY), "pneumonia", 1, "csv"),
        LabelItem(pseudonym(keys, "MRN-0815-Y", ""), "", "pneumonia", 0, "csv"),
    )
    manifest = (bundle.folder / "bundle.json").read_text()
    assert "MRN" not in manifest
    assert STUDY not in manifest


def test_labels_join_the_instances_of_their_study(node: Node, tmp_path: Path) -> None:
    node.release(node.add_study(study_of(2, patient_id="MRN-0042-Z", study=3)))
    import_labels(node.clinical, _csv(tmp_path, f"MRN-0042-Z,,{STUDY[:-1]}3,pneumonia,1"), "test")
    import_bundles(node.research)
    with reading(node.research.engine) as session:
        joined = session.execute(
            select(ResearchInstance.id, Label.value)
            .join(Subject, Subject.id == ResearchInstance.subject_id)
            .join(Label, Label.pseudonym == Subject.pseudonym)
            .where(Label.study_instance_uid == ResearchInstance.study_instance_uid)
        ).all()
    assert [value for _, value in joined] == [1, 1]


def test_unknown_and_contradictory_rows_are_reported_by_line_and_the_rest_goes_on(
    node: Node, tmp_path: Path
) -> None:
    path = _csv(
        tmp_path,
        "MRN-4711-X,,,pneumonia,1",  # line 2
        "MRN-9999-Q,,,pneumonia,1",
        f"MRN-0815-Y,,{STUDY},pneumonia,1",  # the other patient's study
        "MRN-0815-Y,,,edema,1",
        "MRN-0815-Y,,,edema,0",
        "MRN-0815-Y,OTHER,,pneumonia,1",
        "MRN-0815-Y,,,pneumonia,maybe",
    )
    report = import_labels(node.clinical, path, "test")
    assert report.accepted == 1
    assert [(problem.line, problem.code) for problem in report.problems] == [
        (3, "unknown_patient"), (4, "unknown_study"), (5, "contradiction"), (6, "contradiction"),
        (7, "unknown_patient"), (8, "bad_value"),
    ]  # fmt: skip
    for problem in report.problems:
        assert "MRN" not in problem.message
        assert STUDY not in problem.message


def test_one_id_of_two_issuers_needs_the_issuer(node: Node, tmp_path: Path) -> None:
    other = study_of(1, study=4)
    other[0].IssuerOfPatientID = "HOSPITAL-B"
    node.add_study(other)
    path = _csv(tmp_path, "MRN-4711-X,,,pneumonia,1", "MRN-4711-X,HOSPITAL-B,,edema,1")
    report = import_labels(node.clinical, path, "test")
    assert [(problem.line, problem.code) for problem in report.problems] == [(2, "ambiguous_patient")]
    [bundle] = crossing.read_bundles(node.settings)
    keys = project_keys(node.clinical)
    assert [item.pseudonym for item in bundle.items] == [pseudonym(keys, "MRN-4711-X", "HOSPITAL-B")]


def test_a_contradiction_between_two_spellings_of_a_patient_is_reported_and_neither_is_used(
    node: Node, tmp_path: Path
) -> None:
    own = study_of(1, patient_id="ZZ-1", study=6)
    own[0].IssuerOfPatientID = "HB"
    node.add_study(own)
    path = _csv(
        tmp_path,
        "ZZ-1,,,pneumonia,1",
        "ZZ-1,HB,,pneumonia,0",
        "ZZ-1,,,edema,1",
        "ZZ-1,HB,,edema,1",
    )

    report = import_labels(node.clinical, path, "test")

    assert report.accepted == 1
    assert [(problem.line, problem.code) for problem in report.problems] == [
        (2, "contradiction"), (3, "contradiction"), (5, "duplicate"),
    ]  # fmt: skip
    [bundle] = crossing.read_bundles(node.settings)
    assert [item.name for item in bundle.items if isinstance(item, LabelItem)] == ["edema"]


def test_a_placeholder_patient_gets_no_label(node: Node, tmp_path: Path) -> None:
    node.add_study(study_of(1, patient_id="UNKNOWN", study=5))
    report = import_labels(node.clinical, _csv(tmp_path, "UNKNOWN,,,pneumonia,1"), "test")
    assert [problem.code for problem in report.problems] == ["unusable_patient_id"]
    assert report.bundle_id is None
    assert node.bundles() == []


def test_the_ledger_holds_counts_and_no_name(node: Node, tmp_path: Path) -> None:
    import_labels(node.clinical, _csv(tmp_path, "MRN-4711-X,,,pneumonia,1", "NOBODY-1,,,pneumonia,1"), "test")
    with reading(node.clinical.engine) as session:
        entry = session.scalars(
            select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == "labels.imported")
        ).one()
    body = json.loads(entry.body)
    assert (body["accepted"], body["left_out"], entry.actor) == (1, 1, "test")
    assert "MRN" not in entry.body


def test_a_file_that_is_none_is_an_error(node: Node, tmp_path: Path) -> None:
    with pytest.raises(LabelFileError):
        import_labels(node.clinical, tmp_path / "missing.csv", "test")


@pytest.mark.slow
def test_the_command_reports_by_line_and_exits_by_outcome(node: Node, tmp_path: Path) -> None:
    path = _csv(tmp_path, "MRN-4711-X,,,pneumonia,1", "MRN-9999-Q,,,pneumonia,1")
    argv = [
        sys.executable,
        "-m",
        "appliance.cli",
        "labels",
        "import",
        str(path),
        "--config",
        str(node.config),
    ]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "line 3: unknown_patient" in run.stdout
    as_json = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert json.loads(as_json.stdout)["accepted"] == 1
    path.write_text(HEADER + "MRN-9999-Q,,,pneumonia,1\n")
    assert subprocess.run(argv, capture_output=True, check=False, timeout=120).returncode == 1
