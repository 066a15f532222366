from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from appliance import cli, intake, merges
from appliance.db.base import new_id
from appliance.db.clinical import QuarantineItem, Study
from appliance.db.engine import reading, writing
from appliance.node import ClinicalZone, open_clinical
from appliance.settings import load_settings


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "n"
    words = ["init", str(path), "--port", "0", "--web-port", "0"]
    assert CliRunner().invoke(cli.build(), words).exit_code == 0
    return str(path / "cloister.toml")


@pytest.fixture
def zone(config: str) -> ClinicalZone:
    return open_clinical(load_settings(Path(config)))


def cloister(config: str, *words: str) -> Result:
    return CliRunner().invoke(cli.build(), [*words, "--config", config])


def add_study(zone: ClinicalZone) -> str:
    with writing(zone.engine) as session:
        study = Study(
            study_instance_uid=f"2.25.{new_id()[:8]}",
            patient_name="Miller^Anna",
            patient_id="4711",
            modalities="CT",
            instance_count=1,
            revision=0,
        )
        session.add(study)
        session.flush()
        return study.id


def row(zone: ClinicalZone, study_id: str) -> Study:
    with reading(zone.engine) as session:
        return session.get_one(Study, study_id)


def test_a_study_is_listed_shown_assembled_and_held_without_its_identity(
    config: str, zone: ClinicalZone
) -> None:
    study_id = add_study(zone)
    listed = cloister(config, "study", "list", "--json")
    assert [study["id"] for study in json.loads(listed.output)] == [study_id]
    assert json.loads(cloister(config, "study", "list", "--json", "--state", "assembled").output) == []
    assert cloister(config, "study", "assemble", study_id[:8]).exit_code == 0
    assert row(zone, study_id).complete
    intake.assemble(zone, study_id)
    assert cloister(config, "study", "assemble", study_id).exit_code == 2
    shown = cloister(config, "study", "show", study_id[:8]).output
    assert "assembled" in shown
    for word in ("hold", "release", "route"):
        done = cloister(config, "study", word, study_id)
        assert done.exit_code == 0, done.output
    assert not row(zone, study_id).on_hold
    for text in (listed.output, shown):
        assert "Miller" not in text
        assert "4711" not in text


def test_a_person_settles_by_command_whose_study_it_is(config: str, zone: ClinicalZone) -> None:
    study_id = add_study(zone)
    assert cloister(config, "study", "keep", study_id).exit_code == 2, "nothing is disputed"
    for command in ("keep", "take"):
        with writing(zone.engine) as session:
            session.add(
                QuarantineItem(
                    stage="index",
                    reason_code=merges.PATIENT_MISMATCH,
                    reason="-",
                    study_id=study_id,
                    dedupe_key=f"index:{new_id()}",
                    path=f"inbox/quarantine/{new_id()}.dcm",
                )
            )
        done = cloister(config, "study", command, study_id[:8])
        assert done.exit_code == 0, done.output
    with reading(zone.engine) as session:
        assert session.get(Study, study_id) is None
        resolutions = set(session.scalars(select(QuarantineItem.resolution)))
    assert resolutions == {"discarding:wrong_patient", "filing"}


@pytest.mark.parametrize("name", ["x", "abc", "..", "0123456789abcdef"])
def test_what_names_no_study_is_refused(config: str, name: str) -> None:
    done = cloister(config, "study", "show", name)
    assert done.exit_code == 2
    assert "study:" in done.output
