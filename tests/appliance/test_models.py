from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from typer.testing import CliRunner

from appliance import cli, models
from appliance.auth import users
from appliance.auth.rights import Right
from appliance.db.clinical import ClinicalLedgerEntry, ModelVersion
from appliance.db.engine import reading, writing
from appliance.db.people import User
from appliance.models import Counts, ModelError, NotAllowedError
from inference.errors import PackageError
from inference.evaluation import read_report, sign_report
from inference.package import package_sha256
from tests.appliance.serving_material import add_model, add_user, drop_package
from tests.inference.material import make_card, make_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.node import ClinicalZone
    from appliance.settings import Settings


def _versions(zone: ClinicalZone) -> list[ModelVersion]:
    return list(reversed(models.list_versions(zone)))


def _spool(zone: ClinicalZone) -> Path:
    return zone.settings.crossing_in / "packages"


def test_a_package_with_its_report_is_taken_in_as_evaluated(clinical_zone: ClinicalZone) -> None:
    digest = package_sha256(drop_package(clinical_zone))
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1, evaluated=1)
    (version,) = _versions(clinical_zone)
    assert (version.state, version.name, version.version) == ("evaluated", "chest", "1.0")
    assert (version.package_sha256, version.signer) == (digest, "research")
    assert version.modalities == "CR\\DX\\MG"
    assert version.metrics["auc"] == 0.91
    assert version.metrics["facts"] == {"rounds": 3}
    assert (clinical_zone.root / version.path / "model.onnx").read_bytes() == make_onnx()
    assert list(_spool(clinical_zone).iterdir()) == []
    assert models.take_in_candidates(clinical_zone) == Counts()


def test_a_report_that_comes_later_moves_the_candidate_on(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone, report=False)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1)
    assert models.take_in_candidates(clinical_zone) == Counts()
    assert _versions(clinical_zone)[0].state == "candidate"
    drop_package(clinical_zone, report=True)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1, evaluated=1)
    (version,) = _versions(clinical_zone)
    assert version.state == "evaluated"
    assert list(_spool(clinical_zone).iterdir()) == []


def test_the_same_package_again_is_known(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone)
    models.take_in_candidates(clinical_zone)
    drop_package(clinical_zone, "run-again")
    assert models.take_in_candidates(clinical_zone) == Counts(known=1)
    assert len(_versions(clinical_zone)) == 1
    assert [
        path.name for path in (clinical_zone.root / "models").iterdir() if path.name.startswith("incoming")
    ] == []


def test_files_still_being_written_are_left_alone(clinical_zone: ClinicalZone) -> None:
    path = drop_package(clinical_zone)
    path.rename(path.with_name(f".{path.name}.tmp.zip"))
    assert models.take_in_candidates(clinical_zone) == Counts()


def test_a_refused_package_is_kept_with_its_reason(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_BUDGET_S", 600.0)
    stranger = Ed25519PrivateKey.generate()
    content = drop_package(clinical_zone, "stranger", key=stranger).read_bytes()
    (_spool(clinical_zone) / "garbage.zip").write_bytes(b"no zip at all")
    os.mkfifo(_spool(clinical_zone) / "pipe.zip")
    (_spool(clinical_zone) / "link.zip").symlink_to("/dev/zero")
    assert models.take_in_candidates(clinical_zone) == Counts(refused=4)
    found = {version.name: version for version in _versions(clinical_zone)}
    assert {version.state for version in found.values()} == {"refused"}
    assert "package.signer" in str(found["stranger"].reason)
    assert "package.zip" in str(found["garbage"].reason)
    assert "package.files" in str(found["pipe"].reason)
    assert (clinical_zone.root / found["stranger"].path).read_bytes() == content
    assert found["pipe"].path == ""
    assert list(_spool(clinical_zone).iterdir()) == []
    assert models.take_in_candidates(clinical_zone) == Counts()


def test_a_report_on_another_package_or_by_a_stranger_refuses_the_package(
    clinical_zone: ClinicalZone,
) -> None:
    report = drop_package(clinical_zone).with_suffix(".json")
    content = json.loads(report.read_text())
    content["metrics"]["auc"] = 0.99
    report.write_text(json.dumps(content))
    assert models.take_in_candidates(clinical_zone) == Counts(refused=1)
    assert "evaluation" in str(_versions(clinical_zone)[0].reason)

    key = Ed25519PrivateKey.generate()
    signed = sign_report("ab" * 32, {"auc": 1}, {}, key)
    assert read_report(signed, "ab" * 32, {"me": key.public_key()})["metrics"] == {"auc": 1}
    for package, signers in (("cd" * 32, {"me": key.public_key()}), ("ab" * 32, {})):
        with pytest.raises(PackageError, match="evaluation"):
            read_report(signed, package, signers)
    for broken in (b"", b"[]", b"{}", b"null", b'{"signature": 7}', b'{"signature": "00"}', b"[" * 99_999):
        with pytest.raises(PackageError, match="evaluation"):
            read_report(broken, "ab" * 32, {"me": key.public_key()})


def test_without_the_research_zones_key_packages_wait(clinical_zone: ClinicalZone) -> None:
    drop_package(clinical_zone)
    key = clinical_zone.settings.crossing_in / "research.pub"
    key.rename(key.with_suffix(".away"))
    assert models.take_in_candidates(clinical_zone) == Counts()
    key.with_suffix(".away").rename(key)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1, evaluated=1)


def test_a_spool_that_cannot_be_emptied_is_not_read_again(
    clinical_zone: ClinicalZone, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_package(clinical_zone)
    monkeypatch.setattr(models, "forget", lambda _: None)
    assert models.take_in_candidates(clinical_zone) == Counts(taken_in=1, evaluated=1)
    assert models.take_in_candidates(clinical_zone) == Counts()


def test_only_a_person_with_the_right_approves(clinical_zone: ClinicalZone) -> None:
    model = add_model(clinical_zone, None)
    stranger = add_user(clinical_zone, *(right for right in Right if right is not Right.APPROVE_MODEL))
    for actor in (stranger, "0" * 32, "node"):
        with pytest.raises(NotAllowedError):
            models.approve(clinical_zone, model, actor, "active")
    disabled = add_user(clinical_zone, Right.APPROVE_MODEL)
    with writing(clinical_zone.engine) as session:
        session.get_one(User, disabled).enabled = False
    for decide in (models.retire, models.rollback):
        with pytest.raises(NotAllowedError):
            decide(clinical_zone, model, disabled)
    assert _versions(clinical_zone)[0].state == "evaluated"


def test_an_approval_stands_in_the_ledger_with_the_person(clinical_zone: ClinicalZone) -> None:
    model = add_model(clinical_zone, None)
    actor = add_user(clinical_zone, Right.APPROVE_MODEL)
    models.approve(clinical_zone, model, actor, "active")
    (version,) = _versions(clinical_zone)
    assert (version.state, version.decided_by) == ("active", actor)
    assert version.decided_at is not None
    with reading(clinical_zone.engine) as session:
        statement = select(ClinicalLedgerEntry).order_by(ClinicalLedgerEntry.sequence.desc())
        entry = session.scalars(statement).first()
    assert entry is not None
    assert (entry.kind, entry.actor, entry.subject_id) == ("model.decided", actor, model)
    assert json.loads(entry.body)["to"] == "active"


@pytest.mark.parametrize("to", ["candidate", "evaluated", "retired", "refused", "nonsense"])
def test_approval_leads_to_shadow_or_active_only(clinical_zone: ClinicalZone, to: str) -> None:
    model = add_model(clinical_zone, None)
    actor = add_user(clinical_zone, Right.APPROVE_MODEL)
    with pytest.raises(ModelError):
        models.approve(clinical_zone, model, actor, to)


def test_what_was_not_evaluated_or_was_retired_is_not_approved(clinical_zone: ClinicalZone) -> None:
    actor = add_user(clinical_zone, Right.APPROVE_MODEL)
    candidate = add_model(clinical_zone, None, report=False)
    with pytest.raises(ModelError, match="candidate"):
        models.approve(clinical_zone, candidate, actor, "active")
    models.retire(clinical_zone, candidate, actor)
    with pytest.raises(ModelError, match="retired"):
        models.approve(clinical_zone, candidate, actor, "active")
    with pytest.raises(ModelError):
        models.retire(clinical_zone, candidate, actor)
    with pytest.raises(ModelError):
        models.approve(clinical_zone, "0" * 32, actor, "active")


def _second(zone: ClinicalZone, to: str | None = "active", **changes: Any) -> str:
    return add_model(
        zone, to, name="run-2", onnx=make_onnx(bias=1.0), card=make_card(version="2.0"), **changes
    )


def test_a_new_active_version_replaces_the_old_and_rollback_puts_it_back(clinical_zone: ClinicalZone) -> None:
    actor = add_user(clinical_zone, Right.APPROVE_MODEL)
    first, second = add_model(clinical_zone), _second(clinical_zone)
    third = add_model(clinical_zone, name="run-3", onnx=make_onnx(bias=2.0), card=make_card(version="3.0"))
    other = add_model(clinical_zone, name="other", card=make_card(name="hand"))

    def states() -> dict[str, str]:
        return {version.id: version.state for version in _versions(clinical_zone)}

    assert states() == {first: "retired", second: "retired", third: "active", other: "active"}
    assert models.rollback(clinical_zone, "chest", actor) == second
    assert states() == {first: "retired", second: "active", third: "retired", other: "active"}
    assert models.rollback(clinical_zone, "chest", actor) == first
    assert states() == {first: "active", second: "retired", third: "retired", other: "active"}
    with pytest.raises(ModelError, match="replaced none"):
        models.rollback(clinical_zone, "chest", actor)
    with pytest.raises(ModelError, match="active"):
        models.rollback(clinical_zone, "foot", actor)


def test_shadow_and_active_stand_side_by_side(clinical_zone: ClinicalZone) -> None:
    actor = add_user(clinical_zone, Right.APPROVE_MODEL)
    first, second = add_model(clinical_zone), _second(clinical_zone, "shadow")
    assert {version.id: version.state for version in _versions(clinical_zone)} == {
        first: "active",
        second: "shadow",
    }
    models.approve(clinical_zone, second, actor, "active")
    assert {version.id: version.state for version in _versions(clinical_zone)} == {
        first: "retired",
        second: "active",
    }


@pytest.fixture
def config(node_settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "cloister.toml"
    path.write_text(f'data_root = "{node_settings.data_root}"\n')
    return path


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.build(), [str(item) for item in arguments])


def test_the_command_lists_shows_approves_retires_and_rolls_back(
    clinical_zone: ClinicalZone, config: Path
) -> None:
    first = add_model(clinical_zone, None)
    with writing(clinical_zone.engine) as session:
        rights = [Right.APPROVE_MODEL]
        users.add_user(
            session, clinical_zone.ledger, name="ruth", password="correct-horse-battery-9", rights=rights
        )
    decide = ("--config", config, "--user", "ruth")
    assert "evaluated" in _run("model", "list", "--config", config).output
    done = _run("model", "approve", first[:8], "--to", "active", *decide)
    assert (done.exit_code, done.output) == (0, "chest 1.0 is active\n")
    second = _second(clinical_zone, None)
    assert _run("model", "approve", second, "--to", "active", *decide).exit_code == 0
    assert _run("model", "rollback", "chest", *decide).output == "chest 1.0 is active again\n"
    assert _run("model", "retire", first, *decide).exit_code == 0
    listed = json.loads(_run("model", "list", "--json", "--config", config).output)
    assert {item["version"]: item["state"] for item in listed} == {"1.0": "retired", "2.0": "retired"}
    shown = json.loads(_run("model", "show", first, "--json", "--config", config).output)
    assert shown["metrics"]["auc"] == 0.91
    assert shown["provenance"] == {"rounds": 3}


def test_the_command_says_what_is_wrong(clinical_zone: ClinicalZone, config: Path) -> None:
    first = add_model(clinical_zone, None)
    assert (
        _run("model", "approve", first, "--to", "retired", "--user", "x", "--config", config).exit_code == 2
    )
    done = _run("model", "approve", first, "--to", "active", "--user", "nobody", "--config", config)
    assert done.exit_code == 1
    done = _run("model", "show", "1234", "--config", config)
    assert isinstance(done.exception, ModelError)
